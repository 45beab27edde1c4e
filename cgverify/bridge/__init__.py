"""The CodeGen attention bridge. It is independent of the verifier and can be used alone."""

from cgverify.bridge.attention import CodeGenAttentionBridge
from cgverify.bridge.booting import boot, install, uninstall
from cgverify.bridge.export import hugging_face_weights, save_pretrained
from cgverify.bridge.fused_projection import split_qkv_matrix
from cgverify.bridge.qkv_layout import join_features, join_weight, split_features, split_weight

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
