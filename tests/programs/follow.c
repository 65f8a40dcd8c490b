/* Prints every event of a DVM as a line of JSON, until it is halted: follow URI CURSOR */
#include <dvm.h>
#include <poll.h>
#include <stdio.h>

int main(int argc, char **argv) {
    dvm_t *dvm = NULL;
    dvm_event_t event;
    int told;
    if (argc != 3 || dvm_open(&dvm, argv[1]) < 0 || dvm_subscribe(dvm, DVM_ALL, argv[2]) < 0) {
        fprintf(stderr, "%s\n", dvm_error(dvm));
        return 1;
    }
    struct pollfd loop = {.fd = dvm_fd(dvm), .events = POLLIN};
    /* One event each time: the descriptor alone says whether there are more. */
    while ((told = dvm_next_event(dvm, &event)) >= 0) {
        if (told > 0) {
            puts(event.json);
            fflush(stdout);
        }
        if (loop.fd != dvm_fd(dvm)) {
            fprintf(stderr, "the descriptor was %d and is %d\n", loop.fd, dvm_fd(dvm));
            return 1;
        }
        poll(&loop, 1, -1);
    }
    fprintf(stderr, "%s\n", dvm_error(dvm));
    dvm_close(dvm);
    return told == DVM_ENDED ? 0 : 1;
}
