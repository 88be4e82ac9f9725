from tests.pipelines.toy_engine.common import ToyStage

STAGE = ToyStage("draft", "draft.json")
