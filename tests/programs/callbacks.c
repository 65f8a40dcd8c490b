/* What callbacks may do, and when they are called: callbacks URI */
#include "check.h"
#include <dvm.h>
#include <poll.h>
#include <string.h>

struct seen {
    dvm_t *dvm;
    int times;
};

static void members(const dvm_event_t *event, void *arg) {
    struct seen *seen = arg;
    check(event->family == DVM_MEMBER && event->member != NULL, event->kind);
    check(event->last_heard_ms == -1 && event->cause == NULL && event->plugin == NULL, event->json);
    seen->times++;
}

static void plugins(const dvm_event_t *event, void *arg) {
    struct seen *seen = arg;
    char *reply;
    dvm_event_t other;
    check(event->family == DVM_PLUGIN && strcmp(event->plugin, "counter") == 0, event->kind);
    check(dvm_dispatch(seen->dvm) == DVM_USAGE, "dvm_dispatch in a callback is refused");
    check(dvm_call(seen->dvm, "counter", "{\"get\":true}", &reply, 10000) == 0, dvm_error(seen->dvm));
    check(strcmp(reply, "{\"value\":0}") == 0, reply);
    dvm_free(reply);
    check(dvm_next_event(seen->dvm, &other) >= 0, dvm_error(seen->dvm));
    check(strncmp(event->kind, "plugin-", 7) == 0, "the callback's own event stays");
    seen->times++;
}

static void closes(const dvm_event_t *event, void *arg) {
    struct seen *seen = arg;
    seen->times++;
    dvm_close(seen->dvm);
    check(event->index > 0 && strlen(event->cursor) > 0, "the event outlives the handle's end");
}

static void dispatch(dvm_t *dvm, int *times) {
    struct pollfd loop = {.fd = dvm_fd(dvm), .events = POLLIN};
    while (*times == 0) {
        check(poll(&loop, 1, 10000) == 1, "an event comes");
        check(dvm_dispatch(dvm) >= 0, dvm_error(dvm));
    }
}

int main(int argc, char **argv) {
    struct seen member = {NULL, 0}, plugin = {NULL, 0}, close = {NULL, 0};
    dvm_event_t event;
    dvm_t *dvm;
    check(argc == 2 && dvm_open(&dvm, argv[1]) == 0, dvm_error(NULL));
    member.dvm = plugin.dvm = close.dvm = dvm;

    check(dvm_next_event(dvm, &event) == DVM_USAGE, "nothing is subscribed");
    check(strstr(dvm_error(dvm), "subscribe") != NULL, dvm_error(dvm));
    check(dvm_subscribe(dvm, 0, NULL) == DVM_USAGE, "a mask of nothing");
    check(dvm_subscribe(dvm, UINT64_C(1) << 63, NULL) == DVM_USAGE, "a bit that stands for nothing");
    check(dvm_on_event(dvm, DVM_ALL, NULL, NULL) == DVM_USAGE, "no callback");
    check(dvm_next_event(dvm, NULL) == DVM_USAGE && dvm_fd(NULL) == DVM_USAGE, "no place, no handle");
    check(strstr(dvm_error(NULL), "handle") != NULL, dvm_error(NULL));
    check(dvm_mask("member-failed") == DVM_MEMBER && dvm_mask("x") == 0 && dvm_mask(NULL) == 0, "dvm_mask");
    check(strcmp(dvm_uri(dvm), argv[1]) == 0, dvm_uri(dvm));
    dvm_free(NULL);
    dvm_close(NULL);

    check(dvm_on_event(dvm, DVM_MEMBER, members, &member) == 0, dvm_error(dvm));
    check(dvm_on_event(dvm, DVM_PLUGIN, plugins, &plugin) == 0, dvm_error(dvm));
    check(dvm_subscribe(dvm, DVM_ALL, "all") == 0, dvm_error(dvm));
    check(dvm_through(dvm) != NULL, "it is told by a kernel");
    dispatch(dvm, &plugin.times);
    check(member.times > 0, "members were told of before");

    check(dvm_on_event(dvm, 0, members, &member) == 0 && dvm_on_event(dvm, 0, plugins, &plugin) == 0, "taken back");
    check(dvm_subscribe(dvm, DVM_MEMBER, "no cursor") == 0, "what a cursor is the kernel knows");
    struct pollfd loop = {.fd = dvm_fd(dvm), .events = POLLIN};
    check(poll(&loop, 1, 10000) == 1 && dvm_dispatch(dvm) == DVM_USAGE, "it says so");
    check(strstr(dvm_error_json(dvm), "\"code\":\"usage\"") != NULL, dvm_error_json(dvm));

    member.times = 0;
    check(dvm_on_event(dvm, DVM_MEMBER, closes, &close) == 0, dvm_error(dvm));
    check(dvm_subscribe(dvm, DVM_MEMBER, "0") == 0, dvm_error(dvm));
    dispatch(dvm, &close.times);
    check(close.times == 1 && member.times == 0, "after the end nothing is called");
    printf("right %zu\n", sizeof(dvm_event_t));
    return 0;
}
