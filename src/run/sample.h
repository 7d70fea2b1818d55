/* sample.h - a sampler as decode.c sees it. */
#ifndef TMX_RUN_SAMPLE_H
#define TMX_RUN_SAMPLE_H

#include "ops/sample_rule.h"
#include "tmx.h"

int32_t sampler_n_vocab(const tmx_sampler *s);
/* [n_vocab], for logits on the way to tmx_sampler_next. */
float *sampler_logits(tmx_sampler *s);
/* The logits as they are decide: there is no repeat penalty. */
bool sampler_is_plain(const tmx_sampler *s);
/* The next choice's rule; takes a number of the sampler's sequence, as tmx_sampler_next does. */
sample_rule sampler_rule(tmx_sampler *s);

#endif
