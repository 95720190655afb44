// The router: which experts each row of a batch uses.
#pragma once

#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

namespace {

struct Chosen {  // a row of the batch and one of its experts
    int32_t row, expert;
    float weight;
};

class Router {
  public:
    explicit Router(const Model &m) : m(m) {}

    // Appends the n_active best experts of a row, given its router logits.
    void choose(const Layer &layer, int64_t row, const float *logits, std::vector<Chosen> &chosen) {
        rate(logits, layer.router.rows);
        ranked = scores;
        for (size_t i = 0; layer.choice_bias && i < ranked.size(); i++) ranked[i] += layer.choice_bias[i];
        if (m.n_groups > 1) leave_groups();
        const size_t first = chosen.size();
        float total = 0;
        for (int64_t k = 0; k < m.n_active; k++) {
            const int32_t best = take_best(ranked.begin(), ranked.end());
            chosen.push_back({int32_t(row), best, scores[best]});
            total += scores[best];
        }
        for (size_t i = first; i < chosen.size(); i++) chosen[i].weight *= m.expert_scale / (m.normalized ? total : 1);
    }

  private:
    typedef std::vector<float>::iterator At;
    const Model &m;
    std::vector<float> scores, ranked, group, worth;

    // The scores: a sigmoid of each logit, or the softmax over all.
    void rate(const float *logits, int64_t n) {
        scores.assign(logits, logits + n);
        if (m.sigmoid) {
            for (float &score : scores) score = 1 / (1 + std::exp(-score));
            return;
        }
        const float highest = *std::max_element(scores.begin(), scores.end());
        float total = 0;
        for (float &score : scores) total += score = std::exp(score - highest);
        for (float &score : scores) score /= total;
    }

    // The index of the highest score, which is then masked out.
    static int32_t take_best(At first, At last) {
        const At best = std::max_element(first, last);
        *best = -INFINITY;
        return int32_t(best - first);
    }

    // Masks out the experts outside the best groups. A group's score is the sum of its `group_best` best experts.
    void leave_groups() {
        const int64_t size = ranked.size() / m.n_groups, best = std::min(m.group_best, size);
        worth.clear();
        for (At first = ranked.begin(); first != ranked.end(); first += size) {
            group.assign(first, first + size);
            std::partial_sort(group.begin(), group.begin() + best, group.end(), std::greater<float>());
            worth.push_back(std::accumulate(group.begin(), group.begin() + best, 0.0f));
        }
        for (int64_t i = m.n_active_groups; i < m.n_groups; i++) {
            const At worst = std::min_element(worth.begin(), worth.end());
            std::fill_n(ranked.begin() + (worst - worth.begin()) * size, size, -INFINITY);
            *worst = INFINITY;
        }
    }
};

}  // namespace
