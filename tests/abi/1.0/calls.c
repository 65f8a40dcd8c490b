/* Sends each line of standard input to the plug-in `counter` and prints what comes of it: calls [URI] */
#include <dvm.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    dvm_t *dvm;
    char line[256];
    int failure = dvm_open(&dvm, argc > 1 ? argv[1] : NULL);
    if (failure < 0) {
        printf("%d %s\n", failure, dvm_error(dvm));
        return 1;
    }
    while (fgets(line, sizeof line, stdin)) {
        char *reply;
        line[strcspn(line, "\n")] = 0;
        failure = dvm_call(dvm, "counter", line, &reply, 10000);
        if (failure < 0)
            printf("%d %s\n", failure, dvm_error(dvm));
        else
            printf("%s\n", reply);
        fflush(stdout);
        dvm_free(reply);
    }
    dvm_close(dvm);
    return 0;
}
