/* rooms: probe */
/* Bytes as a probe report.  What is accepted must survive a round trip to the byte and give an order; what is refused must
 * say why and leave nothing behind. */
#include "base/mem.h"
#include "probe/probe_report.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool holds) { if (!holds) abort(); }

static void round_trip(const tmx_probe_report *report)
{
    char *saved, *again;
    size_t n_saved, n_again;
    tmx_probe_report *back = NULL;
    require(probe_report_json_text(report, &saved, &n_saved, NULL) == TMX_OK);
    require(probe_report_read_json(&back, saved, n_saved, "p.json", NULL, NULL) == TMX_OK);
    require(probe_report_json_text(back, &again, &n_again, NULL) == TMX_OK);
    require(n_saved == n_again && memcmp(saved, again, n_saved) == 0);
    mem_free(saved), mem_free(again);
    tmx_probe_report_free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static const tmx_model_info info = { .architecture = "llama", .n_layers = 2 };
    tmx_error err = { .text = "" };
    tmx_probe_report *report = NULL;
    if (n_bytes == 0) return 0;
    const tmx_status status = probe_report_read_json(&report, (const char *)data, n_bytes, "p.json", NULL, &err);
    if (status != TMX_OK) {
        require(report == NULL && status != TMX_E_ARG && status != TMX_E_IO);
        require(err.code == status && err.text[0] != '\0' && strchr(err.text, '\n') == NULL);
        return 0;
    }
    round_trip(report);
    tmx_plan *plan = NULL;
    const tmx_status planned = tmx_probe_report_plan(&plan, report, &info, TMX_ORDER_GRADIENT, 0, 1, &err);
    require(planned == TMX_OK || planned == TMX_E_ARG || planned == TMX_E_UNSUPPORTED);
    tmx_plan_free(plan);
    tmx_probe_report_free(report);
    return 0;
}
