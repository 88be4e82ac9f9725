from tests.pipelines.toy_engine.common import ToyStage

STAGE = ToyStage("verify", "report.json", hardware_bound=True)
