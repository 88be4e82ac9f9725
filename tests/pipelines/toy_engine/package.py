from tests.pipelines.toy_engine.common import ToyStage

STAGE = ToyStage("package", "manifest.json")
