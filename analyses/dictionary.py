import numpy as np
def shown(result): return [("patch", i, "") for i in range(3)]
def states_shown(result): return [0,1,2,3]
