// One decode step of a decoder-only transformer as a single function: B token ids in, B rows of logits out.
//
// A decode step of a small model is about two hundred operators of a few microseconds each; run one by one, most of the
// time is launch overhead. Here the whole step is one parallel region: every thread goes through all layers, computes
// its share of the rows of each matrix (or of the heads), and synchronizes with the others at a spinning barrier.
//
// Nothing here is specific to one model: sizes, pointers and switches come in `Model`, filled by compiled/step.py.
// Activations are float32; weights are read as stored: plain numbers row by row, packed weights in panels of 16 rows.
// Read the files in this order: records.h, numbers.h, products.h (and bfloat16.h for many rows), panels.h, many.h for
// prompts, pieces.h, experts.h, then this file.

#include "experts.h"
#include "many.h"
#include "pieces.h"

#include <cfloat>
#include <omp.h>

namespace {

constexpr int CHUNK = 128;    // tokens that attention processes at a time
constexpr int AT_MOST = 32;   // vectors that are multiplied by a tile of rows at a time

// ---- the step ---------------------------------------------------------------------------------------------------

// Keys or values of one head: h numbers per token; `scales`: one per token if they are INT8.
template <class T> struct Tokens {
    T *at;
    float *scales;
    int64_t h;
    Tokens from(int64_t token) const { return {at + token * h, scales ? scales + token : nullptr, h}; }
};

// Stores one token in the format of the cache.
template <class T> void keep(const float *x, Tokens<T> out) {
    for (int64_t i = 0; i < out.h; i++) narrow(x[i], out.at[i]);
}
template <> void keep(const float *x, Tokens<int8_t> out) {
    float most = 0;
    for (int64_t i = 0; i < out.h; i++) most = std::max(most, std::abs(x[i]));
    *out.scales = std::max(most / 127, FLT_MIN);
    for (int64_t i = 0; i < out.h; i++) out.at[i] = int8_t(std::nearbyint(x[i] / *out.scales));
}

template <class T> void copy(Tokens<T> from, Tokens<T> to) {
    std::memcpy(to.at, from.at, to.h * sizeof(T));
    if (to.scales) *to.scales = *from.scales;
}

struct Sizes {  // sizes in floats of the parts of the scratch memory
    int64_t width, gathered, inner, qkv, queries, mixed, own_heads, routes, rotary, room, own;
    Sizes(const Model &m, int64_t batch) {
        const auto padded = [](int64_t n) { return (n + LANES - 1) / LANES * LANES; };
        const int64_t group = m.n_heads / m.n_kv_heads, rows = batch * std::max<int64_t>(m.n_active, 1);
        width = padded(rows * m.hidden_size);  // one copy per expert of a row
        inner = padded(batch * m.inner_size);
        qkv = padded(batch * m.qkv_rows);
        mixed = padded(batch * m.n_heads * m.value_dim);
        gathered = m.own_nope ? std::max(width, qkv) : width;
        queries = m.own_nope ? padded(batch * m.n_heads * m.head_dim) : 0;
        own_heads = m.own_nope ? padded(batch * m.n_heads * std::max(m.own_nope + m.own_rope, m.own_value)) : 0;
        routes = padded(batch * (m.n_experts + 1));
        rotary = padded(m.rotary_dim);
        const int64_t most = std::max({width, inner, gathered, mixed, own_heads});
        room = padded(std::max(most + BLOCK, panel_room(most)));  // eight vectors may be padded to sixteen
        own = width + gathered + room + rotary + padded(group * (m.head_dim + CHUNK + 2) + 3 * m.head_dim);
    }
    int64_t shared() const { return 2 * width + 2 * inner + qkv + queries + mixed + own_heads + routes; }
};

class Worker {
  public:
    Worker(const Model &m, const Step &s, Barrier &barrier, int thread, int threads)
        : m(m), s(s), barrier(barrier), thread(thread), threads(threads), sizes(m, s.batch), router(m) {
        x = s.scratch;
        aside = x + sizes.width;
        inner = aside + sizes.width;
        raised = inner + sizes.inner;
        qkv = raised + sizes.inner;
        queries = qkv + sizes.qkv;
        mixed = queries + sizes.queries;
        own_heads = mixed + sizes.mixed;
        routes = own_heads + sizes.own_heads;
        own = routes + sizes.routes + thread * sizes.own;
        gathered = own + sizes.width;
        room = gathered + sizes.gathered;
        turns = room + sizes.room;
    }

    void run() {
        if (thread == 0) embed();
        if (in_tiles()) begin_tiles();
        barrier.wait(threads);
        for (int64_t i = 0; i < m.n_layers; i++) layer(m.layers[i], s.stores[i]);
        matmul(m.head, normed(m.norm), s.batch, [&](int64_t b, int64_t r, auto y) {
            set_at(s.logits + b * m.vocab_size + r, capped(y * m.logit_scale, m.logit_cap));
        });
        if (in_tiles()) end_tiles();
    }

  private:
    const Model &m;
    const Step &s;
    Barrier &barrier;
    const int thread, threads;
    const Sizes sizes;
    // Shared by threads: residual stream (B, D); outputs that await a post-norm (B, D), else zeros; MLP (B, F), twice;
    // q, k and v (B, (H + K) h + K v); attention output (B, H v); router scores (B, experts and a gate).
    float *x, *aside, *inner, *raised, *qkv, *mixed, *routes;
    // Latent attention: absorbed queries (B, H, h); queries per head, later the outputs per head.
    float *queries, *own_heads;
    // Of this thread: (B, D) after a norm; the rows of each expert; vectors laid out for a product; cos and sin, then
    // buffers of attention.
    float *own, *gathered, *room, *turns;
    Router router;
    std::vector<Chosen> chosen;

    // Tiles round vectors to bfloat16, a single row is not rounded: so a sequence, whose rows must give the same
    // results as separate steps, does not use tiles.
    bool in_tiles() const { return TILES && m.tiles && s.batch > TOGETHER && !s.sequence; }
    int64_t padding(int64_t b) const { return s.padding ? s.padding[b] : 0; }

    void embed() {
        std::memset(aside, 0, sizes.width * sizeof(float));
        for (int64_t b = 0; b < s.batch; b++) {
            float *row = x + b * m.hidden_size;
            copy_row(m.embedding, s.ids[b], row);
            for (int64_t i = 0; i < m.hidden_size; i++) row[i] *= m.embedding_scale;
            if (m.positions.weight) {
                copy_row(m.positions, s.past[b] - padding(b), own);
                for (int64_t i = 0; i < m.hidden_size; i++) row[i] += own[i];
            }
            normalize(m.embedding_norm, row, m.hidden_size, row);
        }
    }

    void layer(const Layer &layer, const Store &store) {
        const float *h = normed(layer.attention_norm);
        matmul(layer.qkv, h, s.batch, [&](int64_t b, int64_t r, auto y) { set_at(qkv + b * m.qkv_rows + r, y); });
        const bool read_alike = layer.mlp_norm.weight == layer.attention_norm.weight;
        if (m.parallel && !read_alike) h = normed(layer.mlp_norm);
        barrier.wait(threads);
        if (m.own_nope) absorb(layer);
        // In a sequence, each row needs the keys and values of the rows before it, and their overwriting of a ring's
        // oldest tokens: therefore one row at a time.
        for (int64_t b = 0, n = s.sequence ? 1 : s.batch; b < s.batch; b += n) {
            switch (s.cache_format) {
                case F32: attend<float>(layer, store, b, n); break;
                case BF16: attend<BFloat>(layer, store, b, n); break;
                case F16: attend<Half>(layer, store, b, n); break;
                case INT8: attend<int8_t>(layer, store, b, n); break;
            }
            barrier.wait(threads);
        }
        if (m.own_nope) make_values(layer);
        add(layer.output, m.own_nope ? own_heads : mixed, layer.post_attention_norm);
        finish(layer.post_attention_norm);
        if (!m.parallel) h = normed(layer.mlp_norm);
        if (layer.router.weight) routed(layer, h);
        if (layer.mlp.up.weight) {
            raise(layer.mlp.up, h, s.batch, inner);
            barrier.wait(threads);
            add(layer.mlp.down, inner, layer.post_mlp_norm, layer.router.next ? routes + layer.router.rows : nullptr);
        }
        finish(layer.post_mlp_norm);
    }

    // Every thread normalizes the whole residual stream itself: cheaper than another barrier.
    const float *normed(const Norm &norm) {
        for (int64_t b = 0; b < s.batch; b++)
            normalize(norm, x + b * m.hidden_size, m.hidden_size, own + b * m.hidden_size);
        return own;
    }

    // Adds an output to the residual stream or, in families with post-norms, to the buffer that is normalized first.
    template <class Y> void join(const Norm &post, int64_t at, Y y) {
        if (post.kind) add_at(aside + at, y);
        else add_at(x + at, y * m.residual_scale);
    }

    // Adds W in to the residual stream; `gate`: scales the result of each row by a sigmoid.
    void add(const Linear &linear, const float *in, const Norm &post, const float *gate = nullptr) {
        const int64_t apart = m.n_experts + 1;
        matmul(linear, in, s.batch, [&](int64_t b, int64_t r, auto y) {
            join(post, b * m.hidden_size + r, gate ? y / (1 + std::exp(-gate[b * apart])) : y);
        });
        barrier.wait(threads);
    }

    // Normalizes the buffered outputs and adds them to the residual stream; each thread takes some rows of the batch.
    void finish(const Norm &post) {
        if (!post.kind) return;
        const auto [first, last] = share(s.batch);
        for (int64_t at = first * m.hidden_size; at < last * m.hidden_size; at += m.hidden_size) {
            normalize(post, aside + at, m.hidden_size, gathered);
            for (int64_t i = 0; i < m.hidden_size; i++) x[at + i] += gathered[i] * m.residual_scale, aside[at + i] = 0;
        }
        barrier.wait(threads);
    }

    // Adds the weighted outputs of the chosen experts of each row. Every thread makes the same choice itself, then
    // computes its share of the rows of each expert's matrices; rows with the same expert share one read of its
    // weights.
    void routed(const Layer &layer, const float *h) {
        const int64_t apart = m.n_experts + 1;
        matmul(layer.router, h, s.batch, [&](int64_t b, int64_t r, auto y) { set_at(routes + b * apart + r, y); });
        barrier.wait(threads);
        chosen.clear();
        for (int64_t b = 0; b < s.batch; b++) router.choose(layer, b, routes + b * apart, chosen);
        std::stable_sort(chosen.begin(), chosen.end(), [](const Chosen &a, const Chosen &b) { return a.expert < b.expert; });
        for (size_t i = 0; i < chosen.size(); i++)
            std::memcpy(gathered + i * m.hidden_size, h + chosen[i].row * m.hidden_size, m.hidden_size * sizeof(float));
        each_expert(layer, [&](const Expert &expert, int64_t first, int64_t n) {
            raise(expert.up, gathered + first * m.hidden_size, n, inner + first * expert.down.cols);
        });
        barrier.wait(threads);
        each_expert(layer, [&](const Expert &expert, int64_t first, int64_t n) {
            matmul(expert.down, inner + first * expert.down.cols, n, [&](int64_t i, int64_t r, auto y) {
                join(layer.post_mlp_norm, chosen[first + i].row * m.hidden_size + r, chosen[first + i].weight * y);
            });
        });
        barrier.wait(threads);
    }

    // Calls work(expert, index of its first row in `chosen`, number of its rows).
    template <class Work> void each_expert(const Layer &layer, Work work) {
        for (size_t first = 0, next; first < chosen.size(); first = next) {
            for (next = first; next < chosen.size() && chosen[next].expert == chosen[first].expert;) next++;
            work(layer.experts[chosen[first].expert], int64_t(first), int64_t(next - first));
        }
    }

    // Computes this thread's rows of W in; calls `put(vector, row, value)` for each.
    template <class Put> void matmul(const Linear &linear, const float *in, int64_t n, Put put) {
        int64_t before = 0;
        for (const Linear *part = &linear; part; before += part->rows, part = part->next)
            product(*part, in, n, [&](int64_t b, int64_t r, auto y) { put(b, before + r, y); });
    }

    template <class Put> void product(const Linear &linear, const float *in, int64_t n, Put put) {
        if (is_packed(linear)) return packed(linear, in, n, put);
        if (n > 1) return together(linear, in, n, put);
        const auto [first, last] = rows_of(linear.rows);
        rows_times(linear, first, last, in, [&](int64_t r, float y) { put(0, r, y); });
    }

    template <class Put> void rows_times(const Linear &linear, int64_t first, int64_t last, const float *in, Put put) {
        switch (linear.format) {
            case F32: each_row<float>(linear, first, last, in, room, put); break;
            case BF16: each_row<BFloat>(linear, first, last, in, room, put); break;
            case F16: each_row<Half>(linear, first, last, in, room, put); break;
        }
    }

    // This thread's rows of W in for a plain matrix and n vectors, with AMX tiles or tiles in registers.
    template <class Put> void together(const Linear &linear, const float *in, int64_t n, Put put) {
        auto [first, last] = rows_of(linear.rows);
        if (in_tiles() && linear.format == BF16 && n > TOGETHER && linear.cols % GROUP == 0) {
            const int64_t whole = last / TILE * TILE;
            in_blocks(linear, first, whole, in, n, put);
            first = std::max(first, whole);
        }
        switch (linear.format) {
            case F32: plain<float>(linear, first, last, in, n, put); break;
            case BF16: plain<BFloat>(linear, first, last, in, n, put); break;
            case F16: plain<Half>(linear, first, last, in, n, put); break;
        }
    }

    template <class T, class Put> void plain(const Linear &linear, int64_t first, int64_t last, const float *in, int64_t n, Put put) {
        for (int64_t b = 0; b < n && first < last; b += AT_MOST) {
            const int64_t count = std::min<int64_t>(n - b, AT_MOST);
            const Vectors vectors = plain_vectors<T>(in + b * linear.cols, linear.cols, count, room);
            each_plain_tile<T>(linear, first, last, vectors, [&](int64_t row, int64_t rows, float *y) {
                add_bias(linear, row, rows, count, y);
                put_tile(row, rows, b, count, y, put);
            });
        }
    }

    template <class Put> void in_blocks(const Linear &linear, int64_t first, int64_t last, const float *in, int64_t n, Put put) {
        BFloat *blocks = (BFloat *)room;
        lay_in_blocks(in, linear.cols, n, blocks);
        each_tile(first, last, n, [&](int64_t row, int64_t b, int64_t count, float *y) {
            if (count > BLOCK) tile_product<2>(linear, row, blocks + b * linear.cols, y);
            else tile_product<1>(linear, row, blocks + b * linear.cols, y);
            add_bias(linear, row, TILE, count, y);
        }, put);
    }

    template <class Put> void packed(const Linear &linear, const float *in, int64_t n, Put put) {
        const PanelVectors all = vectors_for(linear, in, n, room);
        const auto [first, last] = rows_of(linear.rows);
        each_tile(first, last, n, [&](int64_t row, int64_t b, int64_t count, float *y) {
            panel_tile(linear, row, all.from(b), count, y);
        }, put);
    }

    // Calls work(row, vector, number of vectors, 16 sums per vector) for tiles of rows, at most AT_MOST vectors each.
    template <class Work, class Put> void each_tile(int64_t first, int64_t last, int64_t n, Work work, Put put) {
        for (int64_t row = first; row < last; row += TILE)
            for (int64_t b = 0; b < n; b += AT_MOST) {
                const int64_t count = std::min<int64_t>(n - b, AT_MOST);
                float y[AT_MOST * TILE];
                work(row, b, count, y);
                put_tile(row, std::min<int64_t>(last - row, TILE), b, count, y, put);
            }
    }

    // Passes on the sums of a tile of rows with `count` vectors from b on, sixteen at a time in a full tile.
    template <class Put> void put_tile(int64_t row, int64_t rows, int64_t b, int64_t count, const float *y, Put put) {
        for (int64_t j = b; j < b + count; j++, y += TILE) {
            if (rows == TILE) put(j, row, load(y));
            else for (int64_t r = 0; r < rows; r++) put(j, row + r, y[r]);
        }
    }

    // out = act(gate) * up of n vectors, or act(up). A thread reads all its gate rows, then all its ups: one stream.
    void raise(const Linear &up, const float *in, int64_t n, float *out) {
        const int64_t wide = m.gated ? (up.next ? up.rows : up.rows / 2) : up.rows;
        float *ups = raised + (out - inner);
        const auto into = [wide](float *to) { return [=](int64_t b, int64_t r, auto y) { set_at(to + b * wide + r, y); }; };
        product(rows_from(up, 0, wide), in, n, into(out));
        if (m.gated) product(up.next ? *up.next : rows_from(up, wide, wide), in, n, into(ups));
        const auto [first, last] = rows_of(wide);
        for (int64_t b = 0; b < n; b++)
            for (int64_t row = first; row < last; row += TILE) {
                const int64_t at = b * wide + row, bytes = std::min<int64_t>(last - row, TILE) * sizeof(float);
                Vec gate = {}, other = {};
                std::memcpy(&gate, out + at, bytes);
                std::memcpy(&other, ups + at, bytes);
                const Vec result = activated(gate, other);
                std::memcpy(out + at, &result, bytes);
            }
    }

    // Some rows of a matrix as a matrix; for packed matrices only all rows.
    static Linear rows_from(Linear linear, int64_t first, int64_t n) {
        const int64_t size = linear.format == F32 ? 4 : 2;
        if (first) linear.weight = (const char *)linear.weight + first * linear.cols * size;
        if (linear.bias) linear.bias += first;
        linear.rows = n;
        return linear;
    }

    Vec activated(Vec gate, Vec up) const {
        if (!m.gated) return activate(gate, m.activation);
        if (m.swiglu_limit <= 0) return activate(gate, m.activation) * up;
        const Vec limit = all(m.swiglu_limit);  // gpt-oss
        gate = gate > limit ? limit : gate;
        up = up > limit ? limit : up < -limit ? -limit : up;
        return gate / (1 + exp16(-1.702f * gate)) * (up + 1);
    }

    struct Range { int64_t first, last; };
    Range share(int64_t n) const { return {n * thread / threads, n * (thread + 1) / threads}; }
    Range rows_of(int64_t n) const {
        const auto [first, last] = share((n + TILE - 1) / TILE);
        return {first * TILE, std::min(last * TILE, n)};
    }

    // Absorbs the key projection into the queries, so that they can be multiplied by the cache entries. This thread
    // takes some heads of all rows, so that a head's matrix is read once. The part to be rotated follows the absorbed
    // part.
    void absorb(const Layer &layer) {
        const int64_t compressed = layer.latent.query.cols, size = m.own_nope + m.own_rope;
        const float *heads = qkv;
        int64_t row_size = m.qkv_rows;
        if (layer.latent.query.weight) {
            for (int64_t b = 0; b < s.batch; b++)
                normalize(layer.latent.query_norm, qkv + b * m.qkv_rows, compressed, gathered + b * compressed);
            row_size = m.n_heads * size;
            matmul(layer.latent.query, gathered, s.batch, [&](int64_t b, int64_t r, auto y) { set_at(own_heads + b * row_size + r, y); });
            barrier.wait(threads);
            heads = own_heads;
        }
        each_own_head([&](int64_t b, int64_t head) {
            const float *from = heads + b * row_size + head * size;
            float *to = queries + (b * m.n_heads + head) * m.head_dim;
            std::memset(to, 0, m.value_dim * sizeof(float));
            absorb_head(layer.latent.kv_up, head * (m.own_nope + m.own_value), from, to);
            std::memcpy(to + m.value_dim, from + m.own_nope, m.own_rope * sizeof(float));
        });
        barrier.wait(threads);
    }

    // to = the sum of from[i] times row `first` + i of W.
    void absorb_head(const Linear &w, int64_t first, const float *from, float *to) {
        switch (w.format) {
            case F32: sum_rows<float>(w, first, from, to); break;
            case BF16: sum_rows<BFloat>(w, first, from, to); break;
            case F16: sum_rows<Half>(w, first, from, to); break;
        }
    }
    template <class T> void sum_rows(const Linear &w, int64_t first, const float *from, float *to) {
        blend(Tokens<T>{(T *)w.weight + first * w.cols, nullptr, w.cols}, m.own_nope, from, 0, to);
    }

    // The output per head: the value projection of the mixed cache entries.
    void make_values(const Layer &layer) {
        const Linear &w = layer.latent.kv_up;
        each_own_head([&](int64_t b, int64_t head) {
            const int64_t first = head * (m.own_nope + m.own_value) + m.own_nope;
            float *to = own_heads + (b * m.n_heads + head) * m.own_value;
            const auto put = [&](int64_t r, float y) { to[r - first] = y; };
            rows_times(w, first, first + m.own_value, mixed + (b * m.n_heads + head) * m.value_dim, put);
        });
        barrier.wait(threads);
    }

    template <class Work> void each_own_head(Work work) {
        const auto [first, last] = share(m.n_heads * s.batch);
        for (int64_t i = first; i < last; i++) work(i % s.batch, i / s.batch);
    }

    // Attention for this thread's query heads of n rows; heads of a row that share a key/value head go together.
    template <class T> void attend(const Layer &layer, const Store &store, int64_t row, int64_t n) {
        const int64_t group = m.n_heads / m.n_kv_heads, kept_rows = s.sequence ? 1 : s.batch;
        const Tokens<T> keys{(T *)store.values, store.scales, m.head_dim};
        const Tokens<T> values = m.own_nope ? keys : keys.from(kept_rows * m.n_kv_heads * store.slots);
        const Range mine = share(n * m.n_heads);
        int64_t head = row * m.n_heads + mine.first, last = row * m.n_heads + mine.last, turned_for = -1;
        while (head < last) {
            const int64_t b = head / m.n_heads, kv = head % m.n_heads / group;
            const int64_t group_first = b * m.n_heads + kv * group;
            const int64_t stop = group_first + group < last ? group_first + group : last;
            if (b != turned_for) angles(layer, s.past[b], padding(b));
            turned_for = b;
            const int64_t at = ((s.sequence ? 0 : b) * m.n_kv_heads + kv) * store.slots;
            const Heads heads{b, kv, head % m.n_heads, stop - head, head == group_first};
            attend_group(layer, store.slots, heads, keys.from(at), values.from(at));
            head = stop;
        }
    }

    // cos and sin of a row's new token.
    void angles(const Layer &layer, int64_t past, int64_t padding) {
        if (!layer.frequencies) return;
        const bool beyond = layer.long_frequencies && past + 1 - padding > layer.original_context;
        const double *frequencies = beyond ? layer.long_frequencies : layer.frequencies;
        const int64_t half = layer.rotary_dim / 2;
        for (int64_t i = 0; i < half; i++) {
            const double angle = double(past - padding) * frequencies[i];
            turns[i] = float(std::cos(angle)) * layer.rotary_scale;
            turns[half + i] = float(std::sin(angle)) * layer.rotary_scale;
        }
    }

    // Normalizes one head of a row (per head, or with the moments of all heads) and rotates it.
    void prepare(const Layer &layer, const Norm &norm, const float *heads, int64_t head, float *out) {
        const float *from = heads + head * m.head_dim;
        std::memcpy(out, from, m.head_dim * sizeof(float));
        if (norm.kind) {
            const bool alone = norm.width <= m.head_dim;
            scale_by(norm, moments(norm, alone ? from : heads), from, std::min(norm.width, m.head_dim), head * norm.apart, out);
        }
        const int64_t half = layer.rotary_dim / 2;
        if (layer.frequencies) rotate(out + m.rotary_at, turns, turns + half, half);
    }

    struct Heads {  // query heads of one row over one key/value head; the owner stores the new token
        int64_t b, kv, first, count;
        bool owner;
    };

    // Online softmax, chunk by chunk (running maximum and total), so that the buffers do not grow with the context. The
    // new token is rounded as in the cache but not read from there, because its owner may not have stored it yet.
    template <class T>
    void attend_group(const Layer &layer, int64_t slots, const Heads &group, Tokens<T> keys, Tokens<T> values) {
        const int64_t h = m.head_dim, v = m.value_dim, past = s.past[group.b], count = group.count;
        const float *row = qkv + group.b * m.qkv_rows, *new_keys = row + m.n_heads * h, *asked = row;
        if (m.own_nope) asked = queries + group.b * m.n_heads * h, new_keys = row + layer.qkv.rows;
        float *key = turns + sizes.rotary, *now = key + h, *q = now + 2 * h, *scores = q + count * h;
        float *top = scores + count * CHUNK, *total = top + count, scale[2];
        Tokens<T> new_key{(T *)now, scale, h}, new_value = new_key;
        prepare(layer, layer.k_norm, new_keys, group.kv, key);
        keep(key, new_key);
        if (!m.own_nope) {
            new_value = {(T *)now + h, scale + 1, h};
            keep(new_keys + (m.n_kv_heads + group.kv) * h, new_value);
            if (group.owner) copy(new_value, values.from(past % slots));
        }
        if (group.owner) copy(new_key, keys.from(past % slots));
        float *out = mixed + (group.b * m.n_heads + group.first) * v;
        for (int64_t j = 0; j < count; j++) {
            prepare(layer, layer.q_norm, asked, group.first + j, q + j * h);
            top[j] = layer.sinks ? layer.sinks[group.first + j] : -INFINITY;
            total[j] = layer.sinks ? 1 : 0;
        }
        std::memset(out, 0, count * v * sizeof(float));
        const auto visit = [&](Tokens<T> k, Tokens<T> values, int64_t n) {
            for (int64_t j = 0; j < count; j++) {
                float *p = scores + j * CHUNK, *o = out + j * v;
                const float highest = score(k, n, q + j * h, top[j], p);
                const float shrink = std::exp(top[j] - highest);
                top[j] = highest;
                total[j] = total[j] * shrink + exponentials(p, n, highest);
                weigh(values, n, p);
                blend(values, n, p, shrink, o);
            }
        };
        const auto visit_all = [&](int64_t first, int64_t last) {
            for (; first < last; first += CHUNK)
                visit(keys.from(first), values.from(first), std::min<int64_t>(last - first, CHUNK));
        };
        if (past < slots) {
            const int64_t hidden = layer.window && past + 1 > layer.window ? past + 1 - layer.window : 0;
            visit_all(std::max(hidden, padding(group.b)), past);
        } else {  // a full ring buffer: all slots except that of the token that has just left the window
            visit_all(0, past % slots);
            visit_all(past % slots + 1, slots);
        }
        visit(new_key, new_value, 1);
        for (int64_t j = 0; j < count; j++)
            for (int64_t i = 0; i < v; i++) out[j * v + i] /= total[j];
    }

    // p[i] = scale q . k[i]; returns the maximum of these and `highest`.
    template <class T> float score(Tokens<T> k, int64_t n, const float *q, float highest, float *p) {
        const int64_t h = k.h;
        for (int64_t i = 0; i < n; i += LANES) {
            Vec products[LANES];
            for (int r = 0; r < LANES; r++) products[r] = dot(k.at + std::min<int64_t>(i + r, n - 1) * h, h, q);
            Vec y = ::sums(products) * m.attention_scale;
            if constexpr (std::is_same<T, int8_t>::value)
                for (int r = 0; r < LANES && i + r < n; r++) y[r] *= k.scales[i + r];
            if (m.attention_cap > 0)
                for (int r = 0; r < LANES; r++) y[r] = capped(y[r], m.attention_cap);
            store(p + i, y);
        }
        for (int64_t i = 0; i < n; i++) highest = p[i] > highest ? p[i] : highest;
        return highest;
    }

    // p[i] = e^(p[i] - highest); returns their sum.
    static float exponentials(float *p, int64_t n, float highest) {
        for (int64_t i = n; i % LANES; i++) p[i] = -INFINITY;
        Vec total = {};
        for (int64_t i = 0; i < n; i += LANES) {
            const Vec e = exp16(load(p + i) - highest);
            store(p + i, e);
            for (int r = 0; r < LANES; r++) total[r] += i + r < n ? e[r] : 0;
        }
        return sum(total);
    }

    // Multiplies p[i] by the scale of token i if values are INT8.
    template <class T> static void weigh(Tokens<T> tokens, int64_t n, float *p) {
        if constexpr (std::is_same<T, int8_t>::value)
            for (int64_t i = 0; i < n; i++) p[i] *= tokens.scales[i];
    }

    // o = o * shrink + sum of p[i] v[i], four vectors of o at a time.
    template <class T> void blend(Tokens<T> tokens, int64_t n, const float *p, float shrink, float *o) {
        const int64_t h = tokens.h, size = m.value_dim;
        const T *v = tokens.at;
        int64_t d = 0;
        for (; d + 4 * LANES <= size; d += 4 * LANES) {
            Vec a[4];
            for (int j = 0; j < 4; j++) a[j] = load(o + d + j * LANES) * shrink;
            for (int64_t i = 0; i < n; i++)
                for (int j = 0; j < 4; j++) a[j] += load(v + i * h + d + j * LANES) * p[i];
            for (int j = 0; j < 4; j++) store(o + d + j * LANES, a[j]);
        }
        for (; d + LANES <= size; d += LANES) {
            Vec a = load(o + d) * shrink;
            for (int64_t i = 0; i < n; i++) a += load(v + i * h + d) * p[i];
            store(o + d, a);
        }
        for (; d < size; d++) {
            o[d] *= shrink;
            for (int64_t i = 0; i < n; i++) o[d] += widen(v[i * h + d]) * p[i];
        }
    }
};

}  // namespace

extern "C" {

// Floats of scratch memory a step needs.
int64_t scratch_floats(const Model *m, int64_t batch, int32_t threads) {
    const Sizes sizes(*m, batch);
    return sizes.shared() + threads * sizes.own;
}

// Whether `Model.tiles` may be set: the processor has them, and the system lets this process use them.
int32_t tiles_allowed() { return tiles_granted(); }

// Dequantizes the rows [first, last) of a packed matrix to BF16 or F32, for products with many vectors.
void unpack_matrix(const Linear *m, int64_t first, int64_t last, void *out, int32_t format, int32_t threads) {
    if (format == BF16) unpack_rows(*m, first, last, (BFloat *)out, threads);
    else unpack_rows(*m, first, last, (float *)out, threads);
}

// The largest number of vectors for which `multiply` is faster than dequantizing the matrix for another library.
int32_t multiply_at_most() { return BYTES_MULTIPLY ? 32 : 8; }

// Floats of scratch memory that `multiply` needs.
int64_t multiply_floats(const Linear *m, int64_t n, int32_t threads) { return threads * (panel_room(n * m->cols) + LANES); }

// y[b stride + r] = W x[b] of a packed matrix, n vectors.
void multiply(const Linear *m, const float *x, int64_t n, float *y, int64_t stride, float *scratch, int32_t threads) {
    const int64_t n_panels = (m->rows + TILE - 1) / TILE;
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
        const PanelVectors in = vectors_for(*m, x, n, scratch + thread * (panel_room(n * m->cols) + LANES));
        for (int64_t panel = n_panels * thread / all; panel < n_panels * (thread + 1) / all; panel++) {
            float tile[32 * TILE];
            panel_tile(*m, panel * TILE, in, n, tile);
            const int64_t rows = std::min<int64_t>(m->rows - panel * TILE, TILE);
            for (int64_t b = 0; b < n; b++) std::memcpy(y + b * stride + panel * TILE, tile + b * TILE, rows * sizeof(float));
        }
    }
}

// The largest number of vectors of a format for which `multiply_many` is faster than dequantizing the matrix for
// another library: that multiplies floats faster with AVX2, and with AVX-512 once a few hundred vectors share the
// dequantizing.
int32_t multiply_many_at_most(int32_t vectors) {
    if (vectors == BF16 && PAIRS_MULTIPLY) return INT32_MAX;
    return vectors == F32 && BLOCK_PANELS > 1 ? 256 : 0;
}

// Bytes of scratch memory that `multiply_many` needs.
int64_t multiply_many_bytes(const Linear *m, int64_t n, int32_t vectors, int32_t threads) {
    return vectors == BF16 ? many_bytes<BFloat>(*m, n, threads) : many_bytes<float>(*m, n, threads);
}

// y[b stride + r] = W x[b] of a packed matrix, n vectors; x, y and the products use the format `vectors`: F32 or BF16.
void multiply_many(const Linear *m, const void *x, int64_t n, void *y, int64_t stride, int32_t vectors, void *scratch, int32_t threads) {
    if (vectors == BF16) many<BFloat>(*m, x, n, y, stride, scratch, threads);
    else many<float>(*m, x, n, y, stride, scratch, threads);
}

// Reads memory at full speed, as a yardstick for a step's reads; returns the sum of the 64-byte vectors' first numbers.
int32_t read_memory(const void *memory, int64_t n_bytes, int32_t threads) {
    const int64_t n = n_bytes / 64;
    int32_t total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads(), last = n * (thread + 1) / all;
        const char *at = (const char *)memory;
        IVec sums[4] = {};
        int64_t i = n * thread / all;
        for (; i + 4 <= last; i += 4)
            for (int j = 0; j < 4; j++) sums[j] += read<IVec>(at + (i + j) * 64);
        const IVec sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        total += sum[0];
    }
    return total;
}

// Sizes of the records, which Python compares with its own sizes before the first call.
int64_t record_bytes(int32_t which) {
    const int64_t sizes[] = {sizeof(Linear), sizeof(Expert), sizeof(Layer), sizeof(Model), sizeof(Store), sizeof(Step)};
    return sizes[which];
}

void decode_step(const Model *m, const Step *s) {
    Barrier barrier;
#pragma omp parallel num_threads(s->threads)
    Worker(*m, *s, barrier, omp_get_thread_num(), omp_get_num_threads()).run();
}
}
