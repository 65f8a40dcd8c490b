/* dvm.h - the client of a distributed virtual machine (DVM) in C.
 *
 * An event is one more message in your loop: wait for dvm_fd() to be readable together with your other descriptors, then
 * call dvm_next_event() until it returns 0, or dvm_dispatch(), which calls your callbacks. Nothing runs behind your back:
 * the library has no thread and no signal handler, raises no SIGPIPE, and opens every descriptor close-on-exec.
 *
 *     dvm_t *dvm;
 *     if (dvm_open(&dvm, NULL) < 0 || dvm_subscribe(dvm, DVM_MEMBER, NULL) < 0)
 *         errx(1, "%s", dvm_error(dvm));
 *     struct pollfd p = {.fd = dvm_fd(dvm), .events = POLLIN};
 *     while (poll(&p, 1, -1) >= 0) {
 *         dvm_event_t e;
 *         int n;
 *         while ((n = dvm_next_event(dvm, &e)) > 0)
 *             printf("%s %s\n", e.kind, e.member ? e.member : "");
 *         if (n < 0)
 *             break;
 *     }
 *     dvm_close(dvm);
 *
 * KERNELS THAT DIE. A handle talks to any kernel of the DVM on its host. When that one dies, it goes on at another, right
 * after the last event: none is missed, none is told twice. Where there is none it tells an event `detached` once and looks
 * for a kernel again whenever it is asked for events; dvm_fd() becomes readable when it is time to. What no kernel keeps
 * any more is told as an event `overflow`.
 *
 * THREADS. One thread at a time uses a handle; different handles are independent. Every function may be called from any
 * thread, none from a signal handler.
 *
 * FORK. A handle belongs to the process that opened it. In a forked child no function touches anything of the parent's:
 * dvm_error(), dvm_error_json() and dvm_uri() tell what they know, dvm_close() lets go of the child's copies, all others fail
 * with DVM_FORKED. A child that wants a DVM opens a handle of its own. A child that calls exec keeps nothing.
 *
 * ERRORS. Functions that return int return a negative code on failure, and then dvm_error() tells what happened, to whom,
 * and what to do next. NULL for a required argument is DVM_USAGE.
 *
 * INSTANCES. A program can also be the place of a plug-in's instance: dvm_attach, below, gives it the DVM's commands, events and
 * changes of role by the callbacks of dvm_plugin.h, in its own loop or on a thread that it has for that.
 *
 * STRINGS are UTF-8 and end with a zero. What the library gives out is the caller's only where it says so.
 */
#ifndef DVM_H
#define DVM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DVM_VERSION "1.1.0"

/* A client of one DVM. */
typedef struct dvm dvm_t;

/* Codes of failure. The first eight are the exit codes of the command `dvm`. */
enum {
    DVM_FAILURE = -1,         /* anything else */
    DVM_USAGE = -2,           /* the call makes no sense */
    DVM_NO_DVM = -3,          /* no kernel can be reached */
    DVM_REJECTED = -4,        /* voted down, or a condition did not hold: nothing was done */
    DVM_UNKNOWN = -5,         /* timed out, or the kernel was lost: it may or may not take effect */
    DVM_NOT_FOUND = -6,       /* no such plug-in, key, or setting */
    DVM_DENIED = -7,          /* not allowed */
    DVM_NO_QUORUM = -8,       /* this side of the DVM has no quorum */
    DVM_ENDED = -9,           /* no failure: the DVM was halted, and all its events were told; or the plug-in was unloaded */
    DVM_FORKED = -10,         /* the handle belongs to another process */
    DVM_PARTITION_LOST = -11  /* what this handle was told last is not in the history that stands: read anew */
};

/* Families of events, the bits of a mask. docs/events.md has every kind and its fields. */
#define DVM_MEMBER    UINT64_C(0x01) /* member-joined, member-left, member-failed, member-changed */
#define DVM_INSTANCE  UINT64_C(0x02) /* instance-started, instance-failed, instance-restarted, ... */
#define DVM_CONFIG    UINT64_C(0x08) /* config-changed */
#define DVM_LABEL     UINT64_C(0x10) /* label-changed, quorum-lost, quorum-regained */
#define DVM_KEY       UINT64_C(0x20) /* key-changed; not in DVM_ALL */
#define DVM_SUSPECTED UINT64_C(0x40) /* member-suspected: advisory, may pass; not in DVM_ALL */
#define DVM_STREAM    UINT64_C(0x80) /* detached, overflow, partition-lost, halting; always told */
#define DVM_ALL       UINT64_C(0x9f) /* what `dvm events` tells */

/* One more of them: plugin-loaded, plugin-unloaded, plugin-configured, plugin-changed, ... It is no macro, because dvm_plugin.h
 * has one of that name, which takes arguments; so a file may use both headers. */
enum { DVM_PLUGIN = 0x04 };

/* An event. Its strings live until the next call of dvm_next_event, dvm_dispatch, dvm_subscribe or dvm_close on its handle,
 * or until the callback that it is given to returns. */
typedef struct dvm_event {
    uint64_t index;        /* its place in the history, rising strictly; 0: it has none there */
    uint64_t epoch;        /* of the view that it was delivered in */
    uint64_t family;       /* one bit of the mask; 0: a kind that this version does not know */
    int64_t last_heard_ms; /* member-failed: how long before the member was last heard; -1: not told */
    const char *kind;      /* what happened, such as "member-failed" */
    const char *member;    /* whom it is about; NULL: nobody */
    const char *plugin;    /* which plug-in it is about; NULL: none */
    const char *cause;     /* why; NULL: not told */
    const char *noticed_by; /* the member that noticed; NULL: not told */
    const char *label;     /* "confirmed" or "provisional" */
    const char *lineage;   /* line of descent; changes only by `dvm promote` */
    const char *view;      /* the view that it was delivered in */
    const char *cursor;    /* where to resume right after it: for dvm_subscribe, here or in another process */
    const char *time;      /* the proposer's clock, RFC 3339; the same at every member */
    const char *json;      /* all of it, as `dvm events --json` prints it */
    const char *key;       /* key-changed: which key; NULL: none */
    const void *reserved[7];
} dvm_event_t;

/* What dvm_dispatch calls. It may call any function with the handle that it knows but dvm_dispatch; a dvm_close takes
 * effect when it has returned. It must return: no longjmp, no exception. */
typedef void (*dvm_event_fn)(const dvm_event_t *event, void *arg);

/* Opens a handle on a DVM, and stores it in *dvm; the caller closes it with dvm_close. uri: a DVM's name, or `unix:PATH` with
 * the path of its directory or of a member's socket, which is preferred then; NULL: the environment's DVM_URI, else the
 * user's only DVM on this host. Waits until a kernel answers, 10 seconds at most. 0, or a code of failure: then *dvm is
 * NULL, and dvm_error(*dvm) tells of it all the same. */
int dvm_open(dvm_t **dvm, const char *uri);

/* A descriptor that is readable (POLLIN) when an event is there or may be, and when it is time to look for a kernel again.
 * It is the same from dvm_open to dvm_close, whichever kernel is talked to, and before dvm_subscribe already. It is for poll,
 * select, epoll and the like alone: neither read nor close it, and take it out of your loop before dvm_close. */
int dvm_fd(dvm_t *dvm);

/* Asks for the events of the families in mask, in place of what was asked for before. cursor: where to begin, the cursor of
 * an event (after it), "all" (what is kept), "now", or an index; NULL: now. Waits until a kernel has taken it, 10 seconds at
 * most. 0, or a code of failure: nothing is subscribed then. A kernel's refusal, such as of a text that is no cursor, may
 * only come as the failure of dvm_next_event. */
int dvm_subscribe(dvm_t *dvm, uint64_t mask, const char *cursor);

/* Fills in the next event; never waits. 1: an event. 0: none is here now. A code of failure: the subscription has ended, which
 * every further call repeats, until dvm_subscribe; DVM_ENDED when the DVM was halted. */
int dvm_next_event(dvm_t *dvm, dvm_event_t *event);

/* Has dvm_dispatch call fn with arg for the events of the families in mask, after those that were set before; for those of
 * DVM_STREAM always. It asks for nothing: dvm_subscribe does. The same fn and arg again replace the mask, and a mask of 0 takes
 * them back. 0, or a code of failure. */
int dvm_on_event(dvm_t *dvm, uint64_t mask, dvm_event_fn fn, void *arg);

/* Takes the events that are here, at most 64, and calls the callbacks for each in this thread; never waits. How many it
 * took: events that no callback wants are counted, too. A code of failure as for dvm_next_event. */
int dvm_dispatch(dvm_t *dvm);

/* Sends one command to a plug-in, a JSON text, and waits for its reply, at most timeout_ms milliseconds (negative: as long as
 * it takes). When the kernel dies meanwhile the command is sent to another, and takes effect once however often it was sent.
 * 0: *reply is the reply, a JSON text, which the caller frees with dvm_free; reply may be NULL. A code of failure: *reply is
 * NULL; a plug-in's own error is DVM_FAILURE. Events wait meanwhile. */
int dvm_call(dvm_t *dvm, const char *plugin, const char *json, char **reply, int timeout_ms);

/* KEYS of the DVM: a name, a value (a JSON text), a version that grows with every change of it. Names that begin with "dvm/" are
 * reserved. timeout_ms is as for dvm_call: milliseconds to wait at most, negative for as long as it takes. A change whose kernel
 * dies is sent to another, and takes effect once.
 *
 * What must hold of a key, for dvm_key_put and dvm_key_delete, beside a version that it has: */
#define DVM_ANY    UINT64_MAX  /* nothing */
#define DVM_ABSENT UINT64_C(0) /* that it does not exist */

/* Looks a key up. A handle reads what was written with it; fresh other than 0 asks the DVM first, so that nothing is missed
 * that was acknowledged to anybody before. 0: *value is a JSON text, which the caller frees with dvm_free, *version the key's
 * version; either may be NULL. A code of failure: *value is NULL; DVM_NOT_FOUND where there is no such key. */
int dvm_key_get(dvm_t *dvm, const char *key, int fresh, char **value, uint64_t *version, int timeout_ms);

/* Sets a key to a JSON text, if it has the version if_version. 0: *version is its version now; it may be NULL. A code of
 * failure: DVM_REJECTED where it has another. */
int dvm_key_put(dvm_t *dvm, const char *key, const char *json, uint64_t if_version, uint64_t *version, int timeout_ms);

/* Deletes a key, if it has the version if_version. With DVM_ANY one that is not there is fine. 0, or a code of failure. */
int dvm_key_delete(dvm_t *dvm, const char *key, uint64_t if_version, int timeout_ms);

/* The keys that begin with prefix (NULL: all), in order: a JSON text [{"key":...,"value":...,"version":...},...], which the caller
 * frees with dvm_free. 0, or a code of failure: *entries is NULL. */
int dvm_key_list(dvm_t *dvm, const char *prefix, char **entries, int timeout_ms);

/* As dvm_subscribe, with DVM_KEY in the mask, and of the events `key-changed` only those of keys that begin with prefix (NULL: of
 * all). An event tells its key; the value is dvm_key_get's. */
int dvm_watch(dvm_t *dvm, uint64_t mask, const char *prefix, const char *cursor);

/* What `dvm status --json` prints: members, plug-ins, view, index. *status is the caller's, to be freed with dvm_free. 0, or a code of
 * failure: *status is NULL. */
int dvm_status(dvm_t *dvm, char **status, int timeout_ms);

/* All settings, a JSON text {"silence_ms":1000,...}; docs/settings.md tells of each. *settings is the caller's, to be freed with
 * dvm_free. 0, or a code of failure: *settings is NULL. */
int dvm_config(dvm_t *dvm, char **settings, int timeout_ms);

/* Changes a setting; with a member's name a tag of that member, which NULL or "" removes. 0, or a code of failure. */
int dvm_config_set(dvm_t *dvm, const char *member, const char *key, const char *value, int timeout_ms);

/* AN INSTANCE IN THIS PROCESS. A plug-in that was loaded with `--placement application --payload json` has its instance on a
 * member in whichever program attaches there. It gives the table of callbacks that a plug-in in C exports, so the same file can
 * be linked here and loaded elsewhere:
 *
 *     #include <dvm.h>
 *     #include <dvm_plugin.h>
 *     DVM_PLUGIN("tally", "1.0", DVM_JSON, functions)
 *
 *     dvm_attached_t *attached;
 *     if (dvm_attach(dvm, "tally", &dvm_plugin_v1, &attached) < 0)
 *         errx(1, "%s", dvm_error(dvm));
 *     struct pollfd p = {.fd = dvm_attached_fd(attached), .events = POLLIN};
 *     while (poll(&p, 1, -1) >= 0 && dvm_attached_run_pending(attached) >= 0)
 *         ;
 *     dvm_detach(attached);
 *
 * What dvm_plugin.h says of callbacks holds here, too: their order, who owns what, services of the host. What differs:
 *
 * - Threads. The library has none here either: callbacks come inside dvm_attached_run_pending and dvm_attached_wait, in the thread
 *   that calls. A program that wants a thread for the instance starts one that calls dvm_attached_wait. One thread at a time uses
 *   an instance, but for dvm_attached_end. It does not depend on the handle any more, which may be closed before it.
 * - Deadlines. The kernel waits for each callback as long as the plug-in was loaded with (`--deadline`, 5 s), from when it is due,
 *   whether or not the program runs it; and 30 s from dvm_attach to the end of `start` and `restore`. A program that computes for
 *   longer between two calls loses the instance: load with a longer deadline, or give the instance a thread.
 * - Waiting for oneself. The thread that runs an instance must not wait for an ordered command to it (dvm_call, or a service
 *   `call`): nobody would apply it meanwhile.
 * - Its end. `stop` is called at every end of an instance but that of the process, also where the kernel is lost: it frees what the
 *   instance has. Then the host of `start` is gone. After a failure the program may attach again; it begins anew, with `start`.
 * - fork. As with handles: in a forked child no function touches anything of the parent's. A child does not use the host either.
 * - The log goes to this program's standard error, and a crash is this program's. */
struct dvm_plugin_v1;
typedef struct dvm_attached dvm_attached_t;

/* Takes the instance of a plug-in, on the member that the handle talks to, and stores it in *attached; the caller ends it with
 * dvm_detach. code: a dvm_plugin_v1_t, as DVM_PLUGIN makes it; it and what it points to stay until dvm_detach. No callback is called
 * here. Waits until the kernel answers, 10 seconds at most. 0, or a code of failure, of which dvm_error(dvm) tells: *attached is
 * NULL then. No such plug-in, one with another placement, no instance on that member, and one that another program runs already
 * are DVM_FAILURE; a table of another version is DVM_USAGE. */
int dvm_attach(dvm_t *dvm, const char *plugin, const struct dvm_plugin_v1 *code, dvm_attached_t **attached);

/* A descriptor that is readable (POLLIN) when dvm_attached_run_pending has something to do; it is from the beginning. The same until
 * dvm_detach. It is for poll, select, epoll and the like alone, as that of dvm_fd. A callback may ask for it, too. */
int dvm_attached_fd(dvm_attached_t *attached);

/* Makes the callbacks that are due, as many as 64 KiB of commands and events, and sends what they answer; waits for nothing but
 * them. How many it made. DVM_ENDED: the plug-in was unloaded, and its `stop` was called. A code of failure: the instance is over
 * for another reason. Both are repeated by every further call. A callback that calls it is refused with DVM_USAGE. */
int dvm_attached_run_pending(dvm_attached_t *attached);

/* Makes callbacks as they come, in this thread, for timeout_ms milliseconds (negative: until the instance is over; a callback that
 * runs then is waited for). 0: time is up. DVM_ENDED, or a code of failure, as dvm_attached_run_pending. */
int dvm_attached_wait(dvm_attached_t *attached, int timeout_ms);

/* Gives the instance up: it has no token any more, and whoever runs it is told that it is over once the callback that it is in
 * returns. For the DVM it has failed, and the next program may attach. Returns at once. Any thread may call it, and a callback, as
 * long as dvm_detach has not been called. NULL is fine. */
void dvm_attached_end(dvm_attached_t *attached);

/* What the last failure with this instance was, as dvm_error tells it. The string lives until the next failure, or dvm_detach. */
const char *dvm_attached_error(dvm_attached_t *attached);

/* Gives the instance up if it is not over, calls its `stop` if that was not called, and frees it with its descriptor. No other
 * thread may be in any function of it: a thread that runs it is ended by dvm_attached_end and joined before. Called by a
 * callback, it takes effect when the function that made the callback returns. NULL is fine. */
void dvm_detach(dvm_attached_t *attached);

/* The families with a kind that begins so: dvm_mask("member-failed") is DVM_MEMBER. 0: there is no such kind. */
uint64_t dvm_mask(const char *kind);

/* The URI that means the same DVM for any process of this host, whatever dvm_open was given. It lives as long as the handle. */
const char *dvm_uri(dvm_t *dvm);

/* The member whose kernel tells the events; NULL: none now, or a failure. The string lives until the next call with this handle. */
const char *dvm_through(dvm_t *dvm);

/* What the last failure with this handle was: what happened, why, what to do next, in one line. NULL: of this thread's last
 * dvm_open. Never NULL; empty before the first failure. The string lives until the next failure, or dvm_close. */
const char *dvm_error(dvm_t *dvm);

/* The same as JSON: {"code":"no-dvm","exit":3,"message":...,"cause":...,"hint":...}; "{}" before the first failure. */
const char *dvm_error_json(dvm_t *dvm);

/* Frees a text that the caller was given to free. NULL is fine. */
void dvm_free(void *text);

/* Ends a handle, its descriptor and its events. NULL is fine. Called by a callback, it takes effect when dvm_dispatch has
 * returned. */
void dvm_close(dvm_t *dvm);

#ifdef __cplusplus
}
#endif

#endif
