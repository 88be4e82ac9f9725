from tests.pipelines.toy_engine.common import ToyStage

STAGE = ToyStage("verify_onnx", "report.json")
