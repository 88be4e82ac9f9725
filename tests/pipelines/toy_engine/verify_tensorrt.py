from tests.pipelines.toy_engine.common import ToyStage

STAGE = ToyStage("verify_tensorrt", "report.json")
