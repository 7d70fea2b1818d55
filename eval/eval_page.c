#include "eval_report.h"
void report_print_page(const eval_report *r, FILE *out) { (void)r; (void)out; }
