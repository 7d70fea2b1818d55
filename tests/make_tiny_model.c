/* make_tiny_model.c - writes the tests' tiny random model to a temporary file and prints its path, for tests that are not C. */
#include "tiny_model.h"

int main(void)
{
    tiny_model m;
    tiny_model_create(&m, 1, false, false);
    printf("%s\n", m.path);
    free(m.block);
    return 0;
}
