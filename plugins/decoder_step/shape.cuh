// What one compilation of the whole-step kernel is for: the sizes of a model, given as macros, and what follows from
// them. Dimensions: R rows, H hidden, I intermediate, N and N_kv heads, D head_dim, V vocabulary, L layers.
#pragma once

constexpr int NUM_LAYERS = MODEL_LAYERS;
constexpr int HIDDEN = MODEL_HIDDEN;
constexpr int INTERMEDIATE = MODEL_INTERMEDIATE;
constexpr int NUM_HEADS = MODEL_HEADS;
constexpr int NUM_KV_HEADS = MODEL_KV_HEADS;
constexpr int HEAD_DIM = MODEL_HEAD_DIM;
constexpr int VOCAB = MODEL_VOCAB;
constexpr bool HAS_QKV_BIAS = MODEL_QKV_BIAS;
constexpr bool HAS_QK_NORM = MODEL_QK_NORM;
constexpr int WINDOW = MODEL_WINDOW;  // keys that a query sees, itself included; 0: all
constexpr int BLOCK_SIZE = CACHE_BLOCK_SIZE;

constexpr int MAX_ROWS = ROWS;               // rows that this compilation has room for
constexpr int STAGES = RING_STAGES;          // of the weight ring
constexpr int CHUNK = RING_CHUNK;            // columns of a stage, which has TILE_ROWS rows
constexpr int PANEL = ACTIVATION_PANEL;      // columns of the activations that shared memory holds at a time
constexpr int SPLIT_KEYS = ATTENTION_SPLIT;  // keys of one attention item: fixed, so that results do not depend on load


constexpr int GROUP = NUM_HEADS / NUM_KV_HEADS;
constexpr int Q_SIZE = NUM_HEADS * HEAD_DIM;
constexpr int KV_SIZE = NUM_KV_HEADS * HEAD_DIM;
constexpr int QKV_SIZE = Q_SIZE + 2 * KV_SIZE;

constexpr int TILE_ROWS = 16;   // of a weight matrix: the M of mma.m16n8k16
constexpr int MMA_COLUMNS = 8;  // rows of activations per mma: its N
constexpr int ROW_BLOCKS = (MAX_ROWS + MMA_COLUMNS - 1) / MMA_COLUMNS;
constexpr int STEP_COLUMNS = 32;  // columns that a warp takes at once: 16 bytes a thread

constexpr int CONSUMER_WARPS = 8;
constexpr int CONSUMERS = 32 * CONSUMER_WARPS;
constexpr int THREADS = CONSUMERS + 32;  // and the warp that fills the ring
constexpr int CONSUMER_BARRIER = 1;      // id of their named barrier

static_assert(HIDDEN % STEP_COLUMNS == 0 && Q_SIZE % STEP_COLUMNS == 0 && INTERMEDIATE % STEP_COLUMNS == 0,
                            "columns are taken 32 at a time");
static_assert(CHUNK % STEP_COLUMNS == 0 && PANEL % CHUNK == 0, "a panel is whole chunks, a chunk whole steps");
static_assert(HEAD_DIM % 16 == 0 && NUM_HEADS % NUM_KV_HEADS == 0, "heads");
static_assert(SPLIT_KEYS % (16 * CONSUMER_WARPS) == 0, "every warp takes 16 keys at a time");

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Bytes between rows in shared memory: 8 threads that read 64 bytes of each of two rows hit all 32 banks once.
__host__ __device__ constexpr int row_pitch(int columns) { return ceil_div(columns * 2, 128) * 128 + 64; }
