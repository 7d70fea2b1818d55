/* probe_report.h - what the files of a report share.  probe_report.c holds the object and the orders, probe_report_json.c the
 * file. */
#ifndef TMX_PROBE_PROBE_REPORT_H
#define TMX_PROBE_PROBE_REPORT_H

#include "plan/model_tag.h"
#include "tmx.h"

enum { PROBE_FILE_MAX_BYTES = 1 << 24, PROBE_MAX_SAMPLES = 100000 };

struct tmx_probe_report {
    model_tag model;
    int32_t n_layers;
    int32_t n_own_window, own_period;      /* of the model, see tmx_model_info */
    tmx_probe_settings settings;   /* sections filled in */
    int32_t n_samples, n_correct, n_used, cap_samples;
    tmx_probe_sample *samples;     /* [n_samples] */
    tmx_probe_layer *means;        /* [n_layers]: running means, so that a report read back goes on to the same bits */
};

/* The object without samples; settings are checked. */
tmx_status probe_report_new(tmx_probe_report **report, int32_t n_layers, const tmx_probe_settings *settings, tmx_error *err);
/* Room for n samples in all. */
tmx_status probe_report_reserve(tmx_probe_report *report, int32_t n, tmx_error *err);
bool probe_sample_is_used(const tmx_probe_report *report, const tmx_probe_sample *sample);

/* The file's text -> report; `name` is used in messages. */
tmx_status probe_report_read_json(tmx_probe_report **report, const char *text, size_t n_bytes, const char *name,
                                  const tmx_model_info *info, tmx_error *err);
/* NUL-terminated, mem_free()d by the caller. */
tmx_status probe_report_json_text(const tmx_probe_report *report, char **text, size_t *n_bytes, tmx_error *err);

#endif
