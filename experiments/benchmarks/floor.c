/* The floor: one round of FedMF by hand, one thread, touched rows only.
 *
 * The same task, the same random draws and the same batches as the engine: positives shuffled by the affine map,
 * negatives drawn through the Feistel network and masked by the client's bitmap, SGD on the sum of the binary
 * cross-entropies of a batch, updates summed over the cohort. float32 throughout; only the order of additions
 * differs. Compiled at run time with -O3 -march=native -ffast-math.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int num_items, dim, positives, negatives, epochs, double_rounds, words;
    float learning_rate;
    const int32_t *offsets, *items;
    const uint32_t *bitmap, *primes;
} Task;

static inline uint32_t mix(uint32_t value, uint32_t key) {
    uint32_t h = value * 0x9E3779B1u + key;
    h = (h ^ (h >> 15)) * 0x85EBCA77u;
    return h ^ (h >> 13);
}

static inline uint32_t below(uint32_t value, uint32_t key, uint32_t bound) {
    return ((mix(value, key) >> 16) * bound) >> 16;
}

/* Batch t of one client: ids of its rows, num_items for an empty slot. */
static void name_rows(const Task *task, int client, const uint32_t *key, int t, uint32_t width, uint32_t height,
                      int32_t *ids) {
    const int start = task->offsets[client], count = task->offsets[client + 1] - start;
    const uint32_t stride = task->primes[key[0] % 1024u] % (uint32_t)count;
    for (int i = 0; i < task->positives; i++) {
        const int64_t index = (int64_t)t * task->positives + i;
        ids[i] = task->num_items;
        if (index < count)
            ids[i] = task->items[start + (int)((index * stride + key[1] % (uint32_t)count) % (uint32_t)count)];
    }
    const int drawn = task->positives * task->negatives;
    const uint32_t *seen = task->bitmap + (size_t)client * task->words;
    int64_t wanted = (int64_t)count * task->negatives;
    if (wanted > (int64_t)width * height) wanted = (int64_t)width * height;
    for (int i = 0; i < drawn; i++) {
        const uint32_t position = (uint32_t)t * drawn + i;
        uint32_t y = position / width, x = position - y * width;
        for (int turn = 0; turn < task->double_rounds; turn++) {
            x += below(y, key[0] + (uint32_t)turn * 0x68E31DA4u, width);
            if (x >= width) x -= width;
            y += below(x, key[1] + (uint32_t)turn * 0xB5297A4Du, height);
            if (y >= height) y -= height;
        }
        const uint32_t item = y * width + x;
        const int empty = position >= wanted || item >= (uint32_t)task->num_items ||
                          ((seen[item >> 5] >> (item & 31)) & 1u);
        ids[task->positives + i] = empty ? task->num_items : (int32_t)item;
    }
}

/* One SGD step on rows[i] (dim floats each, NULL for an empty slot); their updates go to out[i]. */
static void step(const Task *task, float *vector, float **rows, float **out, float *gradient) {
    const int size = task->positives * (1 + task->negatives), dim = task->dim;
    memset(gradient, 0, sizeof(float) * dim);
    for (int i = 0; i < size; i++) {
        const float *row = rows[i];
        if (!row) continue;
        float score = 0;
        for (int d = 0; d < dim; d++) score += row[d] * vector[d];
        const float error = 1.0f / (1.0f + expf(-score)) - (i < task->positives ? 1.0f : 0.0f);
        for (int d = 0; d < dim; d++) gradient[d] += error * row[d];
        float *target = out[i];
        const float rate = -task->learning_rate * error;
        for (int d = 0; d < dim; d++) target[d] += rate * vector[d];
    }
    for (int d = 0; d < dim; d++) vector[d] -= task->learning_rate * gradient[d];
}

/* Train a cohort; `total` [num_items, dim] receives the sum of the row updates, `vectors` [N, dim] the new ones. */
void run_cohort(const Task *task, const float *table, float *vectors, const int32_t *cohort, const uint32_t *keys,
                int size, float *total) {
    const int dim = task->dim, batch = task->positives * (1 + task->negatives);
    uint32_t width = (uint32_t)sqrt((double)(task->num_items - 1));
    while ((uint64_t)width * width > (uint64_t)(task->num_items - 1)) width--;
    while ((uint64_t)(width + 1) * (width + 1) <= (uint64_t)(task->num_items - 1)) width++;
    width += 1;
    const uint32_t height = ((uint32_t)task->num_items + width - 1) / width;
    int longest = 1;
    for (int c = 0; c < size; c++) {
        const int count = task->offsets[cohort[c] + 1] - task->offsets[cohort[c]];
        if (count > longest) longest = count;
    }
    const size_t room = (size_t)((longest + task->positives - 1) / task->positives) * batch;
    int32_t *ids = malloc(sizeof(int32_t) * room);
    float *work = task->epochs > 1 ? malloc(sizeof(float) * room * dim) : NULL;
    float **rows = malloc(sizeof(float *) * batch), **out = malloc(sizeof(float *) * batch);
    float *gradient = malloc(sizeof(float) * dim);
    for (int c = 0; c < size; c++) {
        const int client = cohort[c];
        const int count = task->offsets[client + 1] - task->offsets[client];
        const int batches = (count + task->positives - 1) / task->positives;
        float *vector = vectors + (size_t)client * dim;
        for (int epoch = 0; epoch < task->epochs; epoch++)
            for (int t = 0; t < batches; t++) {
                int32_t *own = ids + (size_t)t * batch;
                if (epoch == 0) name_rows(task, client, keys + 2 * c, t, width, height, own);
                for (int i = 0; i < batch; i++) {
                    if (own[i] >= task->num_items) {
                        rows[i] = out[i] = NULL;
                    } else if (!work) {
                        rows[i] = (float *)table + (size_t)own[i] * dim;
                        out[i] = total + (size_t)own[i] * dim;
                    } else {
                        rows[i] = out[i] = work + ((size_t)t * batch + i) * dim;
                        if (epoch == 0) memcpy(rows[i], table + (size_t)own[i] * dim, sizeof(float) * dim);
                    }
                }
                step(task, vector, rows, out, gradient);
            }
        if (work)
            for (size_t i = 0; i < (size_t)batches * batch; i++) {
                if (ids[i] >= task->num_items) continue;
                const float *old = table + (size_t)ids[i] * dim, *new = work + i * dim;
                float *sum = total + (size_t)ids[i] * dim;
                for (int d = 0; d < dim; d++) sum[d] += new[d] - old[d];
            }
    }
    free(ids), free(work), free(rows), free(out), free(gradient);
}
