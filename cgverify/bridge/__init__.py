"""The CodeGen attention bridge. It knows nothing of verification and can be used alone."""

from cgverify.bridge.attention import CodeGenAttentionBridge
from cgverify.bridge.boot import boot
from cgverify.bridge.export import hugging_face_weights, save_pretrained
from cgverify.bridge.fused_qkv import join_features, join_weight, split_features, split_qkv_matrix, split_weight
from cgverify.bridge.install import install, uninstall

__all__ = [
    "CodeGenAttentionBridge",
    "boot",
    "hugging_face_weights",
    "install",
    "join_features",
    "join_weight",
    "save_pretrained",
    "split_features",
    "split_qkv_matrix",
    "split_weight",
    "uninstall",
]
