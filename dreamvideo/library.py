"""The public names, each from the room where it lives; `dreamvideo` gives them as its own."""

from .base import Base as Base
from .base import open_base as open_base
from .encoders.loading import load_encoders as load_encoders
from .encoders.protocols import Encoders as Encoders
from .files.adapter_info import AdapterInfo as AdapterInfo
from .files.adapter_info import LoadedAdapter as LoadedAdapter
from .files.adapters import load_adapter as load_adapter
from .files.adapters import save_adapter as save_adapter
from .files.base import find_base as find_base
from .files.unet import load_unet as load_unet
from .models.adapters import Adapter as Adapter
from .models.adapters import AdapterConfig as AdapterConfig
from .models.adapters import build_adapter as build_adapter
from .models.config import UNetConfig as UNetConfig
from .models.deltas import DeltaConfig as DeltaConfig
from .models.deltas import WeightDelta as WeightDelta
from .models.stack import AdapterStack as AdapterStack
from .models.stack import StackEntry as StackEntry
from .models.unet import UNet as UNet
