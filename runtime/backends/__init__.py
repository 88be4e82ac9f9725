"""Where a step runs: the contract, the state that lives on the device, and the implementations."""
