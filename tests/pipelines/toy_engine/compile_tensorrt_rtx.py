from tests.pipelines.toy_engine.common import ToyStage

STAGE = ToyStage("compile_tensorrt_rtx", "model.plan")
