"""How much of a prompt a step takes in beside requests that decode, which should hardly notice: costs and the rule."""
