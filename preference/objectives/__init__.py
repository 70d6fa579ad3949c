"""Every preference objective. Importing this package fills ``REGISTRY``; adding one is one function and one test."""

from preference.objectives import anchored as anchored
from preference.objectives import batchwise as batchwise
from preference.objectives import curves as curves
from preference.objectives import games as games
from preference.objectives import length as length
from preference.objectives import reference_free as reference_free
from preference.objectives import sigmoid as sigmoid
from preference.objectives import ties as ties
from preference.objectives.base import REGISTRY as REGISTRY
