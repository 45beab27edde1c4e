"""The CodeGen attention bridge. It knows nothing of verification and can be used alone."""

from cgverify.bridge.attention import CodeGenAttentionBridge
from cgverify.bridge.boot import boot
from cgverify.bridge.fused_qkv import join_weight, split_qkv_matrix, split_weight

__all__ = ["CodeGenAttentionBridge", "boot", "join_weight", "split_qkv_matrix", "split_weight"]
