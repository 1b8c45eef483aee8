"""The families of the table, in its order."""

from tests.families.gemma import GEMMA2, GEMMA3, GEMMA4
from tests.families.hybrids import GRANITE4, GRANITE4_H, LFM2
from tests.families.llama import LLAMA3, MINISTRAL3, MISTRAL, R1_LLAMA, SMOLLM3
from tests.families.more import ERNIE45, EXAONE4, GLM4, GPT_OSS, HUNYUAN, OLMO2, OLMO3, PHI3, PHI4
from tests.families.qwen import QWEN3, QWEN3_MOE, QWEN25, QWEN35, R1_QWEN

FAMILIES = (
    LLAMA3, QWEN25, QWEN3, QWEN3_MOE, QWEN35, GEMMA2, GEMMA3, GEMMA4, PHI3, PHI4, MISTRAL, MINISTRAL3, SMOLLM3, LFM2, GPT_OSS,
    GRANITE4, GRANITE4_H, GLM4, OLMO2, OLMO3, ERNIE45, HUNYUAN, EXAONE4, R1_QWEN, R1_LLAMA,
)  # fmt: skip
