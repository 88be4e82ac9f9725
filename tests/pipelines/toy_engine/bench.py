from tests.pipelines.toy_engine.common import ToyStage

STAGE = ToyStage("bench", "summary.json", hardware_bound=True)
