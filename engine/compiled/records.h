// The records that Python passes: pointers and sizes. Each field must match the ctypes records of compiled/records.py.
//
// Shapes: B rows of the batch, D hidden size, H query heads, K key/value heads, h head size, v value size.
#pragma once

#include <cstdint>

using std::int32_t;
using std::int64_t;

enum Format : int32_t { F32, BF16, F16, INT8, INT4, INT4_ZERO, INT2, INT3, INT5, INT6, IQ4, FP4 };  // panels.h: from INT8 on
enum Activation : int32_t { RELU, SILU, GELU, GELU_TANH, RELU2, GELU_SIGMOID };
enum NormKind : int32_t { NO_NORM, RMS_NORM, LAYER_NORM };

struct Linear {              // y = W x + b, W (rows, cols); also an embedding table
    const void *weight;      // row by row, or in panels of 16 rows (panels.h)
    const uint16_t *scales;  // of panels: float16
    const float *bias;       // (rows), or null
    const Linear *next;      // the matrix whose rows follow: same columns, any format; or null
    int64_t rows, cols;
    int32_t format;
};

struct Norm {
    const float *weight, *bias;  // null: ones, zeros
    int64_t width, apart;        // numbers normalized together; of q and k: stride of the weights per head
    float eps;
    int32_t kind;
};

struct Expert {
    Linear up, down;  // up: gate rows, then up rows, when gated
};

// Latent attention: all heads attend to one vector per token, whose first numbers are also its value. The keys and
// values per head would be products of that vector and `kv_up`; instead `kv_up` is absorbed (engine/model/latent.py).
struct Latent {
    Norm query_norm;
    Linear query;  // from compressed queries; weight null: queries are not compressed
    Linear kv_up;  // per head the rows for keys, then for values; weight null: ordinary attention
};

struct Layer {
    Linear qkv, output;       // with latent attention, qkv: the (compressed) queries, then the cache entry
    Latent latent;
    Expert mlp;               // weight null: there are only routed experts
    Linear router;            // weight null: no experts; `next`: one more row, the gate of `mlp`
    const Expert *experts;    // as many as the router has rows
    const float *choice_bias; // added to the scores only for the choice, or null
    Norm attention_norm, mlp_norm, post_attention_norm, post_mlp_norm, q_norm, k_norm;
    const float *sinks;             // (H): per head the score of a sink, which has no value; or null
    const double *frequencies;      // angle per token of each pair of dimensions (rotary_dim / 2), or null
    const double *long_frequencies; // the same for texts of more than `original_context` tokens, or null
    int64_t original_context, rotary_dim;
    int64_t window;                 // visible tokens, including the new one; 0: all
    float rotary_scale;
};

struct Model {
    const Layer *layers;
    Linear embedding, positions, head;  // positions.weight null: no learned positions
    Norm norm, embedding_norm;
    int64_t n_layers, hidden_size, vocab_size;
    // As seen by attention: latent attention has one key/value head, of the size of a cache entry.
    int64_t n_heads, n_kv_heads, head_dim, value_dim;
    int64_t rotary_at, rotary_dim;      // where the rotated part of a head begins; the largest over the layers
    int64_t qkv_rows;
    int64_t own_nope, own_rope, own_value;  // latent attention: sizes of the query and value per head
    int64_t inner_size;  // per row, of the MLP or of all its experts together: the largest over the layers
    int64_t n_experts, n_active;  // per layer; per row
    int64_t n_groups, n_active_groups, group_best;  // of experts; how many best experts give a group's score
    float attention_scale, embedding_scale, residual_scale, logit_scale, expert_scale;
    float attention_cap, logit_cap, swiglu_limit;  // 0: no cap, no cap, an ordinary activation
    int32_t activation, gated, parallel;  // parallel: the MLP reads what attention reads
    int32_t normalized, sigmoid;  // the weights of a row's experts sum to expert_scale; scores are sigmoids
    int32_t tiles;  // use AMX: `tiles_allowed`, and the model computes in bfloat16, to which vectors may be rounded
};

struct Store {      // the cache of one layer
    void *values;   // (2, B, K, slots, h): keys, then values; with latent attention (B, slots, h)
    float *scales;  // (2, B, K, slots) if the values are INT8, else null
    int64_t slots;  // with more tokens than slots, a ring buffer of the newest
};

struct Step {
    const int64_t *ids, *past;  // (B): the new token of each row, and how many tokens its cache holds
    const int64_t *padding;     // (B): how many of those are padding at the beginning of the row; or null
    const Store *stores;        // (n_layers)
    float *logits, *scratch;    // (B, vocab_size); `scratch_floats` floats
    int64_t batch;
    int32_t threads, cache_format;
    int32_t sequence;  // the rows are consecutive tokens of the single row of the cache
};
