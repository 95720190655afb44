// What Python hands over: pointers and sizes. compiled/records.py's ctypes records must match these field by field.
//
// Letters: B rows of the batch, D hidden size, H query heads, K key/value heads, h head size, v size of a value.
#pragma once

#include <cstdint>

using std::int32_t;
using std::int64_t;

enum Format : int32_t { F32, BF16, F16, INT8, INT4, INT4_ZERO, INT2, INT3, INT5, INT6, IQ4, FP4 };  // panels.h: from INT8 on
enum Activation : int32_t { RELU, SILU, GELU, GELU_TANH, RELU2, GELU_SIGMOID };
enum NormKind : int32_t { NO_NORM, RMS_NORM, LAYER_NORM };

struct Linear {              // y = W x + b, W (rows, cols); a table of embeddings is one too
    const void *weight;      // row by row, or in panels of 16 rows (panels.h)
    const uint16_t *scales;  // of panels: float16
    const float *bias;       // (rows), or null
    const Linear *next;      // whose rows follow, of the same columns in whatever format; or null
    int64_t rows, cols;
    int32_t format;
};

struct Norm {
    const float *weight, *bias;  // null: ones, zeros
    int64_t width, apart;        // numbers normalized together; of queries and keys: weights from a head to the next
    float eps;
    int32_t kind;
};

struct Expert {
    Linear up, down;  // up: gate rows, then up rows, when gated
};

// Latent attention: all heads attend to one vector for each token, whose first numbers are its value too. A head's own
// keys and values would be products of those with `kv_up`, which are moved to the other side (engine/model/latent.py).
struct Latent {
    Norm query_norm;
    Linear query;  // of compressed queries; weight null: they are not
    Linear kv_up;  // for each head its keys' rows, then its values'; weight null: ordinary attention
};

struct Layer {
    Linear qkv, output;       // of latent attention: the (compressed) queries, then what a token leaves
    Latent latent;
    Expert mlp;               // weight null: there are only routed experts
    Linear router;            // weight null: there are none; `next`: one more row, the gate of `mlp`
    const Expert *experts;    // as many as the router has rows
    const float *choice_bias; // added to their scores for the choice alone, or null
    Norm attention_norm, mlp_norm, post_attention_norm, post_mlp_norm, q_norm, k_norm;
    const float *sinks;             // (H): a score of each head that leads to no token, or null
    const double *frequencies;      // rotation per token of each pair of dimensions (rotary_dim / 2), or null
    const double *long_frequencies; // those of a text of more than `original_context` tokens, or null
    int64_t original_context, rotary_dim;
    int64_t window;                 // tokens in sight, counting the new one; 0: all
    float rotary_scale;
};

struct Model {
    const Layer *layers;
    Linear embedding, positions, head;  // positions.weight null: none are learned
    Norm norm, embedding_norm;
    int64_t n_layers, hidden_size, vocab_size;
    // As tokens are attended to: latent attention has one K, of the size of what a token leaves.
    int64_t n_heads, n_kv_heads, head_dim, value_dim;
    int64_t rotary_at, rotary_dim;      // where the turned part of a head begins; the largest of the layers
    int64_t qkv_rows;
    int64_t own_nope, own_rope, own_value;  // of a head's own query and value, where attention is latent
    int64_t inner_size;  // of a row's MLP, or of all its experts together: the largest of the layers
    int64_t n_experts, n_active;  // of a layer; of a row
    int64_t n_groups, n_active_groups, group_best;  // of experts; those of a group that say how good it is
    float attention_scale, embedding_scale, residual_scale, logit_scale, expert_scale;
    float attention_cap, logit_cap, swiglu_limit;  // 0: none, none, an ordinary activation
    int32_t activation, gated, parallel;  // parallel: the MLP reads what attention reads
    int32_t normalized, sigmoid;  // the weights of a row's experts add up to expert_scale; scores are each a sigmoid
    int32_t tiles;  // arithmetic is bfloat16's, to which vectors may be rounded, and `tiles_allowed` has said so
};

struct Store {      // what one layer keeps of all tokens
    void *values;   // (2, B, K, slots, h): keys, then values; of latent attention (B, slots, h)
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
    int32_t sequence;  // the rows are tokens that follow each other in the one row of the cache
};
