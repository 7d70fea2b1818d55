/* replay.c - runs a fuzz target over every file of a folder, so that past findings stay found without a fuzzer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static int replay(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL) return 1;
    fseek(f, 0, SEEK_END);
    const long end = ftell(f);
    rewind(f);
    const size_t n_bytes = end > 0 ? (size_t)end : 0;
    uint8_t *data = malloc(n_bytes + (n_bytes == 0));       /* exact size: a read past the end is caught by ASan */
    const int is_bad = data == NULL || fread(data, 1, n_bytes, f) != n_bytes;
    fclose(f);
    if (!is_bad) LLVMFuzzerTestOneInput(data, n_bytes);
    free(data);
    return is_bad;
}

int main(int argc, char **argv)
{
    int n_passed = 0, n_failed = 0;
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        if (dir == NULL) {
            fprintf(stderr, "%s: no such folder\n", argv[i]);
            return 1;
        }
        for (struct dirent *e; (e = readdir(dir)) != NULL;) {
            if (e->d_name[0] == '.') continue;
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", argv[i], e->d_name);
            if (replay(path) == 0) n_passed++;
            else n_failed++;
        }
        closedir(dir);
    }
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0 || n_passed == 0;
}
