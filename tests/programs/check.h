/* What the test programs are checked by. */
#include <stdio.h>
#include <unistd.h>

static void wrong(const char *what) {
    printf("wrong: %s\n", what);
    fflush(stdout);
    _exit(1);
}

/* What is wrong is only looked up where it is. */
#define check(holds, what) \
    do { \
        if (!(holds)) \
            wrong(what); \
    } while (0)
