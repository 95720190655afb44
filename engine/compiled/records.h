// What Python hands over: pointers and sizes. compiled/step.py's ctypes records must match these field by field.
//
// Letters: B rows of the batch, D hidden size, H query heads, K key/value heads, h head size.
#pragma once

#include <cstdint>

using std::int32_t;
using std::int64_t;

enum Format : int32_t { F32, BF16, F16, INT8, INT4, INT4_ZERO, INT2, INT3, INT5, INT6, IQ4, FP4 };  // panels.h: from INT8 on
enum Activation : int32_t { RELU, SILU, GELU, GELU_TANH };

struct Linear {              // y = W x + b, W (rows, cols); a table of embeddings is one too
    const void *weight;      // row by row, or in panels of 16 rows (panels.h)
    const uint16_t *scales;  // of panels: float16
    const float *bias;       // (rows), or null
    const Linear *next;      // whose rows follow, of the same columns in whatever format; or null
    int64_t rows, cols;
    int32_t format;
};

struct Norm {
    const float *weight, *bias;  // weight null: no such norm; bias null: RMSNorm, else LayerNorm
};

struct Expert {
    Linear up, down;  // up: gate rows, then up rows, when gated
};

struct Layer {
    Linear qkv, output;
    Expert mlp;             // weight null: there are only routed experts
    Linear router;          // weight null: there are none
    const Expert *experts;  // as many as the router has rows
    Norm attention_norm, mlp_norm, post_attention_norm, post_mlp_norm;
    const float *q_norm, *k_norm;   // (h), or null
    const float *sinks;             // (H): a score of each head that leads to no token, or null
    const double *frequencies;      // rotation per token of each pair of dimensions (rotary_dim / 2), or null
    const double *long_frequencies; // those of a text of more than `original_context` tokens, or null
    int64_t original_context;
    int64_t window;                 // tokens in sight, counting the new one; 0: all
};

struct Model {
    const Layer *layers;
    Linear embedding, positions, head;  // positions.weight null: none are learned
    Norm norm;
    int64_t n_layers, hidden_size, n_heads, n_kv_heads, head_dim, rotary_dim, vocab_size;
    int64_t inner_size;  // of a row's MLP, or of all its experts together: the largest of the layers
    int64_t n_experts, n_active;  // of a layer; of a row
    float norm_eps, attention_scale, embedding_scale, rotary_scale, attention_cap, logit_cap;  // caps: 0 is none
    float swiglu_limit, expert_scale;  // 0: an ordinary activation
    int32_t activation, gated, normalized;  // normalized: the weights of a row's experts add up to expert_scale
    int32_t tiles;  // arithmetic is bfloat16's, to which vectors may be rounded, and `tiles_allowed` has said so
};

struct Store {      // what one layer keeps of all tokens
    void *values;   // (2, B, K, slots, h): keys, then values
    float *scales;  // (2, B, K, slots) where they are INT8, else null
    int64_t slots;  // where there are more tokens than slots, they are a ring of the newest
};

struct Step {
    const int64_t *ids, *past;  // (B): the new token of each row, and how many tokens its cache holds
    const int64_t *padding;     // (B): how many of those only fill the row up at its beginning, or null
    const Store *stores;        // (n_layers)
    float *logits, *scratch;    // (B, vocab_size); `scratch_floats` floats
    int64_t batch;
    int32_t threads, cache_format;
};
