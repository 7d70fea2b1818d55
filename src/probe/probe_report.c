#include "probe/probe_report.h"

#include "base/mem.h"
#include "base/status.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- the object */

static tmx_status check_settings(const tmx_probe_settings *s, tmx_error *err)
{
    if (memchr(s->source, '\0', sizeof s->source) == NULL) return refuse(err, TMX_E_ARG, "probe report: source has no end");
    if (!is_utf8(s->source)) return refuse(err, TMX_E_ARG, "probe report: source is not valid UTF-8");
    if (s->n_tokens < 1) return refuse(err, TMX_E_ARG, "probe report: n_tokens %d, expected 1 or more", s->n_tokens);
    if (s->n_samples < 1 || s->n_samples > PROBE_MAX_SAMPLES) {
        return refuse(err, TMX_E_ARG, "probe report: n_samples %d, expected 1..%d", s->n_samples, PROBE_MAX_SAMPLES);
    }
    if (s->seed < 0) return refuse(err, TMX_E_ARG, "probe report: seed %lld is negative", (long long)s->seed);
    if (s->compute != TMX_COMPUTE_F32 && s->compute != TMX_COMPUTE_BF16) {
        return refuse(err, TMX_E_ARG, "probe report: compute %d, expected 1 (f32) or 2 (bf16)", (int)s->compute);
    }
    tmx_probe_cells cells;
    return tmx_probe_count_cells(&s->sections, s->n_tokens, &cells, err);
}

tmx_status probe_report_new(tmx_probe_report **report, int32_t n_layers, const tmx_probe_settings *settings, tmx_error *err)
{
    TRY(check_settings(settings, err));
    tmx_probe_report *r = mem_alloc(1, sizeof *r);
    if (r != NULL) r->means = mem_alloc((size_t)n_layers, sizeof *r->means);
    if (r == NULL || r->means == NULL) {
        mem_free(r);
        return refuse(err, TMX_E_MEMORY, "probe report: no memory for %d layers", n_layers);
    }
    r->n_layers = n_layers;
    r->settings = *settings;
    if (r->settings.sections.n_window == 0) {
        r->settings.sections = (tmx_probe_sections){ TMX_PROBE_SINK, TMX_PROBE_WINDOW, TMX_PROBE_LAST };
    }
    *report = r;
    return TMX_OK;
}

tmx_status tmx_probe_report_create(tmx_probe_report **report, const tmx_model_info *info, const tmx_probe_settings *settings,
                                   tmx_error *err)
{
    if (report == NULL || info == NULL || info->architecture == NULL || settings == NULL) {
        return refuse(err, TMX_E_ARG, "tmx_probe_report_create: NULL argument");
    }
    TRY(probe_report_new(report, info->n_layers, settings, err));
    (*report)->model = model_tag_of(info);
    (*report)->n_own_window = info->n_window;
    (*report)->own_period = info->window_period;
    return TMX_OK;
}

void tmx_probe_report_free(tmx_probe_report *report)
{
    if (report == NULL) return;
    mem_free(report->samples);
    mem_free(report->means);
    mem_free(report);
}

const tmx_probe_settings *tmx_probe_report_settings(const tmx_probe_report *report) { return &report->settings; }
int32_t tmx_probe_report_n_layers(const tmx_probe_report *report) { return report->n_layers; }
static bool is_ranked(const tmx_probe_report *r, int32_t layer)
{
    return r->n_own_window == 0 || (r->own_period > 0 && (layer + 1) % r->own_period == 0);
}

int32_t tmx_probe_report_n_ranked(const tmx_probe_report *report)
{
    int32_t n = 0;
    for (int32_t l = 0; l < report->n_layers; l++) n += is_ranked(report, l);
    return n;
}

int32_t tmx_probe_report_n_samples(const tmx_probe_report *report) { return report->n_samples; }
int32_t tmx_probe_report_n_correct(const tmx_probe_report *report) { return report->n_correct; }
int32_t tmx_probe_report_n_used(const tmx_probe_report *report) { return report->n_used; }

const tmx_probe_sample *tmx_probe_report_sample(const tmx_probe_report *report, int32_t i)
{
    return i >= 0 && i < report->n_samples ? &report->samples[i] : NULL;
}

const tmx_probe_layer *tmx_probe_report_layer(const tmx_probe_report *report, int32_t layer)
{
    return layer >= 0 && layer < report->n_layers ? &report->means[layer] : NULL;
}

tmx_status tmx_probe_report_set_n_samples(tmx_probe_report *report, int32_t n_samples, tmx_error *err)
{
    if (report == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_report_set_n_samples: NULL argument");
    tmx_probe_settings settings = report->settings;
    settings.n_samples = n_samples;
    TRY(check_settings(&settings, err));
    report->settings = settings;
    return TMX_OK;
}

/* ---------------------------------------------------------------- samples */

tmx_status probe_report_reserve(tmx_probe_report *r, int32_t n, tmx_error *err)
{
    if (n <= r->cap_samples) return TMX_OK;
    if (n > PROBE_MAX_SAMPLES) return refuse(err, TMX_E_ARG, "probe report: more than %d samples", PROBE_MAX_SAMPLES);
    const int32_t cap = n < 64 ? 64 : n > PROBE_MAX_SAMPLES / 2 ? PROBE_MAX_SAMPLES : 2 * n;
    tmx_probe_sample *samples = mem_alloc((size_t)cap, sizeof *samples);
    if (samples == NULL) return refuse(err, TMX_E_MEMORY, "probe report: no memory for %d samples", cap);
    if (r->n_samples > 0) memcpy(samples, r->samples, (size_t)r->n_samples * sizeof *samples);
    mem_free(r->samples);
    r->samples = samples;
    r->cap_samples = cap;
    return TMX_OK;
}

bool probe_sample_is_used(const tmx_probe_report *report, const tmx_probe_sample *sample)
{
    return !report->settings.is_correct_only || sample->top_token == sample->target;
}

static void move_mean(double *mean, double sum, int64_t n_cells, int32_t n_used)
{
    if (n_cells > 0) *mean += (sum / (double)n_cells - *mean) / n_used;
}

static void move_means(tmx_probe_sums *means, const tmx_probe_sums *sums, int64_t n_cells, int32_t n_used)
{
    move_mean(&means->theta_abs, sums->theta_abs, n_cells, n_used);
    move_mean(&means->theta_signed, sums->theta_signed, n_cells, n_used);
    move_mean(&means->head_abs, sums->head_abs, n_cells, n_used);
    move_mean(&means->da_abs, sums->da_abs, n_cells, n_used);
    move_mean(&means->attention, sums->attention, n_cells, n_used);
}

static bool are_finite(const tmx_probe_sums *s)
{
    return isfinite(s->theta_abs + s->theta_signed + s->head_abs + s->da_abs + s->attention);
}

tmx_status tmx_probe_report_add(tmx_probe_report *r, const tmx_probe_sample *sample, const tmx_probe_layer *layers, tmx_error *err)
{
    if (r == NULL || sample == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_report_add: NULL argument");
    tmx_probe_cells cells;
    TRY(tmx_probe_count_cells(&r->settings.sections, sample->n_tokens, &cells, err));
    if (cells.middle == 0) {
        const tmx_probe_sections *s = &r->settings.sections;
        return refuse(err, TMX_E_ARG, "probe: a prompt of %d tokens has no Middle section beside sink %d, window %d and last %d",
                      sample->n_tokens, s->n_sink, s->n_window, s->n_last);
    }
    if (sample->n_tokens > r->settings.n_tokens) {
        return refuse(err, TMX_E_ARG, "probe report: a prompt of %d tokens, the settings say at most %d", sample->n_tokens,
                      r->settings.n_tokens);
    }
    const bool is_used = probe_sample_is_used(r, sample);
    if (is_used && layers == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_report_add: a sample without sums");
    for (int32_t l = 0; l < r->n_layers && is_used; l++) {
        if (are_finite(&layers[l].streaming) && are_finite(&layers[l].last) && are_finite(&layers[l].middle)) continue;
        return refuse(err, TMX_E_NUMERIC, "probe report: the sums of layer %d hold NaN or infinity", l);
    }
    TRY(probe_report_reserve(r, r->n_samples + 1, err));
    r->samples[r->n_samples++] = *sample;
    r->n_correct += sample->top_token == sample->target;
    if (!is_used) return TMX_OK;
    r->n_used++;
    for (int32_t l = 0; l < r->n_layers; l++) {
        move_means(&r->means[l].streaming, &layers[l].streaming, cells.streaming, r->n_used);
        move_means(&r->means[l].last, &layers[l].last, cells.last, r->n_used);
        move_means(&r->means[l].middle, &layers[l].middle, cells.middle, r->n_used);
    }
    return TMX_OK;
}

/* ---------------------------------------------------------------- orders */

static uint64_t next_random(uint64_t *state)           /* SplitMix64 */
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Is layer a before layer b? */
static bool is_before(const tmx_probe_report *r, tmx_probe_order order, int32_t a, int32_t b)
{
    const double x = r->means[a].middle.theta_abs, y = r->means[b].middle.theta_abs;
    if (x != y) return (x < y) == (order == TMX_ORDER_GRADIENT);
    return a > b;
}

tmx_status tmx_probe_report_order(const tmx_probe_report *r, tmx_probe_order order, uint64_t seed, int32_t *layers, tmx_error *err)
{
    if (r == NULL || layers == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_report_order: NULL argument");
    if ((int)order < TMX_ORDER_GRADIENT || (int)order > TMX_ORDER_WORST) {
        return refuse(err, TMX_E_ARG, "probe order: %d, expected %d..%d", (int)order, TMX_ORDER_GRADIENT, TMX_ORDER_WORST);
    }
    if (r->n_used == 0) return refuse(err, TMX_E_ARG, "probe report: no sample in it leads to no order of layers");
    int32_t n = 0, behind = tmx_probe_report_n_ranked(r);
    for (int32_t i = 0; i < r->n_layers; i++) {
        const int32_t layer = order == TMX_ORDER_SHALLOWEST ? i : r->n_layers - 1 - i;
        layers[is_ranked(r, layer) ? n++ : behind++] = layer;
    }
    for (int32_t i = n - 1; order == TMX_ORDER_RANDOM && i > 0; i--) {
        const int32_t k = (int32_t)(next_random(&seed) % (uint64_t)(i + 1)), swap = layers[i];
        layers[i] = layers[k];
        layers[k] = swap;
    }
    if (order != TMX_ORDER_GRADIENT && order != TMX_ORDER_WORST) return TMX_OK;
    for (int32_t i = 1; i < n; i++) {              /* by insertion: hundreds of layers at most */
        const int32_t layer = layers[i];
        int32_t at = i;
        for (; at > 0 && is_before(r, order, layer, layers[at - 1]); at--) layers[at] = layers[at - 1];
        layers[at] = layer;
    }
    return TMX_OK;
}

static void note_of(char *note, size_t size, const tmx_probe_report *r, tmx_probe_order order, uint64_t seed, int32_t k)
{
    static const char *const names[] = { "smallest Middle gradient", "deepest", "shallowest", "random", "largest Middle gradient" };
    char drawn[32] = "";
    if (order == TMX_ORDER_RANDOM) snprintf(drawn, sizeof drawn, " %llu", (unsigned long long)seed);
    snprintf(note, size, "tmx probe: %d of %d layers, %s%s first; %d samples of %s, up to %d tokens, sections %d/%d/%d", k, r->n_layers,
             names[order], drawn, r->n_used, r->settings.source, r->settings.n_tokens, r->settings.sections.n_sink,
             r->settings.sections.n_window, r->settings.sections.n_last);
}

static tmx_status parse_listed(tmx_plan **plan, const int32_t *layers, int32_t k, const tmx_model_info *info, tmx_error *err)
{
    enum { DIGITS = 12 };
    char *spec = mem_alloc(sizeof "triangle:" + (size_t)k * DIGITS, 1);
    if (spec == NULL) return refuse(err, TMX_E_MEMORY, "plan: no memory for %d layers", k);
    size_t at = (size_t)sprintf(spec, "%s", k == 0 ? "dense" : "triangle");
    for (int32_t i = 0; i < k; i++) at += (size_t)snprintf(spec + at, DIGITS, "%c%d", i == 0 ? ':' : ',', layers[i]);
    const tmx_status status = tmx_plan_parse(plan, spec, info, err);
    mem_free(spec);
    return status;
}

tmx_status tmx_probe_report_plan(tmx_plan **plan, const tmx_probe_report *r, const tmx_model_info *info, tmx_probe_order order,
                                 uint64_t seed, int32_t n_layers, tmx_error *err)
{
    if (plan == NULL || r == NULL || info == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_report_plan: NULL argument");
    if (n_layers < 0 || n_layers > r->n_layers) {
        return refuse(err, TMX_E_ARG, "plan: %d layers of a model of %d", n_layers, r->n_layers);
    }
    if (n_layers > tmx_probe_report_n_ranked(r)) {
        return refuse(err, TMX_E_ARG, "plan: %d layers, a plan can change %d of this model's %d (the others have a window of their own)",
                      n_layers, tmx_probe_report_n_ranked(r), r->n_layers);
    }
    const strict_reader reader = { .file = "probe report", .what = "probe report", .err = err };
    TRY(model_tag_check(&reader, &r->model, r->n_layers, info));
    int32_t *layers = mem_alloc((size_t)r->n_layers, sizeof *layers);
    if (layers == NULL) return refuse(err, TMX_E_MEMORY, "plan: no memory for %d layers", r->n_layers);
    tmx_plan *found = NULL;
    char note[512];
    note_of(note, sizeof note, r, order, seed, n_layers);
    tmx_status status = tmx_probe_report_order(r, order, seed, layers, err);
    if (status == TMX_OK) status = parse_listed(&found, layers, n_layers, info, err);
    if (status == TMX_OK) status = tmx_plan_set_note(found, note, err);
    mem_free(layers);
    if (status == TMX_OK) *plan = found;
    else tmx_plan_free(found);
    return status;
}
