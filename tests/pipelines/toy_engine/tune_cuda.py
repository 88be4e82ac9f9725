from tests.pipelines.toy_engine.common import ToyStage

STAGE = ToyStage("tune_cuda", "device.json")
