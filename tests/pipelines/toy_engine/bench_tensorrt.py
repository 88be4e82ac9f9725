from tests.pipelines.toy_engine.common import ToyStage

STAGE = ToyStage("bench_tensorrt", "summary.json")
