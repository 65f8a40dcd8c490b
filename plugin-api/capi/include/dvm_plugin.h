/* dvm_plugin.h - plug-ins of a distributed virtual machine (DVM) in C, C++, and what speaks C.
 *
 * A plug-in is a shared library that says DVM_PLUGIN once. Loaded into a DVM it runs as one instance on every member, each in
 * a process of its own; a command is ordered among all others and applied by every instance, so that all have the same
 * state. The least one:
 *
 *     static int start(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, void **instance,
 *                      const dvm_out_t *out);
 *     static int apply(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out);
 *
 *     static const dvm_functions_t mine = {.start = start, .apply = apply};
 *     DVM_PLUGIN_STATELESS("mine", "0.1.0", DVM_JSON, mine)
 *
 *     cc -shared -fPIC -o libmine.so mine.c
 *     dvm plugin check ./libmine.so && dvm plugin load ./libmine.so
 *
 * This header is all that is needed: it links to nothing but the C library. A program can be the place of an instance, too, with the
 * same table: dvm_attach in dvm.h.
 *
 * THE ONE RULE. apply may depend on nothing but the instance's state, the command and meta: no clock, no chance, no address,
 * no uninitialized memory. Effects on the outside carry (meta->fence, meta->index).
 *
 * OWNERSHIP. Nothing allocated on one side is kept or freed on the other. Arguments are the host's and live until the callback
 * returns, but for the host of start, which lives until stop has returned: copy what you keep. What you tell goes
 * through out->write, which copies it at once. *instance is yours alone, from start to stop; the host only hands it back.
 *
 * TEXT. Configurations, commands and all strings end with a zero byte that `size` does not count. A state is bytes.
 *
 * THREADS. The callbacks of one instance are called by one thread at a time, in this order: validate, start, restore where a
 * state is handed over, any of the others, stop. You may have threads of your own: they end before stop returns, and call
 * nothing but the functions of dvm_host_t, which may be called by any thread at any time, though not by a signal handler.
 *
 * ERRORS. A callback that returns int returns DVM_DONE, or anything else for an error, whose text it writes to out: dvm_fail
 * does both. What it wrote before belongs to the text, so decide before you write. An error changes nothing for the host:
 * the instance lives on with the state that it has.
 *
 * CRASHES. A plug-in that crashes, exits, aborts or does not return is the end of its process, never of the kernel: all members
 * are told, and it is started again from another member's state. No exception and no longjmp may leave a callback: one that
 * does ends the process, too. Loaded with --placement kernel it has a thread of the kernel's process instead: what ends a
 * process ends the kernel then, and what is static outlives its instances.
 *
 * GROWTH. Structures begin with their size and grow at their end. A host takes a plug-in that was compiled against an older
 * header of the same major version, and one that was compiled against a newer one. Of a structure that the host gives, ask
 * DVM_HAS(pointer, field) before you read a field that came after version 1.0. docs/abi.md has the whole promise.
 *
 * FORTRAN. Write procedures with bind(C) and scalars by value, and call them from callbacks in a small C file: the JSON
 * helpers below are inline, and the ELF note can only be written here. docs/plugins.md shows where there is an example.
 */
#ifndef DVM_PLUGIN_H
#define DVM_PLUGIN_H

#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The ABI's version, MAJOR.MINOR, in the manifest and, as MAJOR << 16 | MINOR, in the table. */
#define DVM_PLUGIN_ABI_TEXT "1.1"
#define DVM_PLUGIN_ABI UINT32_C(0x00010001)

/* What a callback returns. */
enum {
    DVM_DONE = 0, /* done; what was written to out is the result */
    DVM_ERROR = 1 /* not done; what was written to out says why, in words for people */
};

/* Severities of the log, those of syslog. */
enum { DVM_LOG_ERROR = 3, DVM_LOG_WARNING = 4, DVM_LOG_INFO = 6 };

/* What an instance is among its plug-in's instances. More may come: treat one that you do not know as DVM_STANDBY. */
enum {
    DVM_ACTIVE = 0,  /* one of equals: every instance applies and answers */
    DVM_PRIMARY = 1, /* the one that answers and acts on the outside */
    DVM_STANDBY = 2  /* ready to become the primary */
};

/* Format of configuration, commands and replies. */
#define DVM_JSON "json"       /* text; the helpers below read and write it */
#define DVM_BYTES "bytes"     /* a command's text as it was given, a reply of any bytes */
#define DVM_MSGPACK "msgpack" /* what plug-ins in Rust use */

/* Where a result goes: the host's. */
typedef struct dvm_out {
    size_t struct_size;
    void *ctx;
    /* Appends a copy of `size` bytes to the result. [inside the callback that was given this out] */
    void (*write)(void *ctx, const void *bytes, size_t size);
} dvm_out_t;

/* What a plug-in may ask of its host. */
typedef struct dvm_host {
    size_t struct_size;
    const void *ctx;
    /* Writes a line to the kernel's log at a level DVM_LOG_...; standard output and error get there, too. [any thread] */
    void (*log)(const void *ctx, int level, const char *text);
    /* The fencing token while this instance is the primary and may act on the world; 0 while it may not. Ask right before
     * each effect, and let the effect carry the token. [any thread] */
    uint64_t (*token)(const void *ctx);
    /* Asks for a service: `json` is an object with one field, named like the service, such as {"broadcast":{"command":1}}, and
     * lives until the function returns; the answer, JSON too, is written to out, which is yours. DVM_ERROR: the text of the error
     * is written instead. docs/host-services.md has them all. Not inside validate, apply, query, snapshot, restore; inside
     * start only what nobody else notices. The helpers below are made of it. Since 1.1. [any thread] */
    int (*ask)(const void *ctx, const char *json, size_t size, const dvm_out_t *out);
} dvm_host_t;

/* Where an instance runs. */
typedef struct dvm_place {
    size_t struct_size;
    const char *member;       /* name of the member */
    uint32_t rank;            /* its rank, 0 the oldest */
    uint32_t size;            /* how many members there are */
    const char *const *peers; /* their names, by rank */
} dvm_place_t;

/* Where a command stands in the history; the same at every instance. */
typedef struct dvm_meta {
    size_t struct_size;
    uint64_t index;      /* grows with every command */
    uint64_t fence;      /* the primary's fencing token; 0 where there is no primary */
    uint64_t time;       /* the proposer's wall clock, milliseconds since 1970; it may step */
    uint64_t seed;       /* a number drawn for this command: seed a generator with it where chance is wanted */
    const char *session; /* the client's session, within which the command takes effect once; NULL: none */
} dvm_meta_t;

/* Something that happened in the DVM; docs/events.md lists the kinds and their fields, docs/host-services.md those that come
 * to this instance alone, whose index is 0. */
typedef struct dvm_told {
    size_t struct_size;
    uint64_t index;   /* its place in the history; 0: it has none */
    const char *kind; /* what, such as "member-failed" */
    const char *json; /* the fields of its kind, a JSON object */
    size_t json_size;
} dvm_told_t;

/* A plug-in's callbacks. All but start and apply may be NULL. Each is told of above: who owns what, which thread, which order.
 * [any] needs no instance. [instance] comes between start and stop. */
typedef struct dvm_functions {
    /* Whether this configuration would do at this place; an error is this member's vote against it. Called for a load before
     * start, and for a `configure` while the instance runs. place, host: for the call. NULL: anything would do. [any] */
    int (*validate)(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, const dvm_out_t *out);
    /* Makes an instance and stores it in *instance, which may stay NULL. After an error it leaves nothing behind. place: for
     * the call; host: until stop has returned. [any] */
    int (*start)(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, void **instance,
                 const dvm_out_t *out);
    /* Applies an ordered command and writes the reply. [instance] */
    int (*apply)(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out);
    /* Answers a command that changes nothing, at this instance alone. NULL: an error that says so. [instance] */
    int (*query)(void *instance, const char *command, size_t size, const dvm_out_t *out);
    /* Takes a new configuration, which every member has validated. After an error the instance is ended and started again with
     * it. NULL: it counts from the next start. [instance] */
    int (*configure)(void *instance, const char *config, size_t size, const dvm_out_t *out);
    /* Tells of an event. [instance] */
    void (*on_event)(void *instance, const dvm_told_t *event);
    /* Tells of a role, DVM_ACTIVE and so on; fence is the token of DVM_PRIMARY, else 0. [instance] */
    void (*on_role)(void *instance, int role, uint64_t fence);
    /* Tells that the members or their ranks changed. [instance] */
    void (*on_place)(void *instance, const dvm_place_t *place);
    /* Writes the state, from which restore makes it again; it changes nothing. Both or none. [instance] */
    int (*snapshot)(void *instance, const dvm_out_t *out);
    /* Takes over the state of another instance, right after start. After an error the instance is ended. [instance] */
    int (*restore)(void *instance, const void *state, size_t size, const dvm_out_t *out);
    /* The plug-in is unloaded: ends its threads and frees the instance. The process ends next. An instance whose kernel
     * leaves or fails is not told. Inside a kernel, where no process ends, every instance is. [instance] */
    void (*stop)(void *instance);
} dvm_functions_t;

/* Bits of dvm_plugin_v1_t.flags. */
#define DVM_FLAG_STATELESS UINT32_C(1) /* it has no state to hand over */

/* What the library exports, under the name dvm_plugin_v1. DVM_PLUGIN makes it. */
typedef struct dvm_plugin_v1 {
    uint32_t struct_size;
    uint32_t abi;            /* DVM_PLUGIN_ABI */
    uint32_t functions_size; /* sizeof(dvm_functions_t) */
    uint32_t flags;
    const dvm_functions_t *functions;
    /* What is optional beyond the functions, by a name with a version such as "dvm.snapshot/1"; it returns a pointer to the
     * extension's table, which lives as long as the process, or NULL for what it does not know. Hosts up to 1.1 know
     * of none. May be NULL. [any] */
    const void *(*get_extension)(const char *id);
} dvm_plugin_v1_t;

extern __attribute__((visibility("default"))) const dvm_plugin_v1_t dvm_plugin_v1;

#ifdef __cplusplus
}
#endif

/* Makes the library a plug-in: an ELF note that says what it is, so that nothing of it must be run to look at it, and the
 * table. Once a library, at file scope. name, version, payload: string literals; payload is DVM_JSON, DVM_BYTES or
 * DVM_MSGPACK. functions: a constant dvm_functions_t, with snapshot and restore. */
#define DVM_PLUGIN(name, version, payload, functions) DVM_PLUGIN_EXTENDED(name, version, payload, functions, NULL)

/* The same for a plug-in that keeps no state, and so needs neither snapshot nor restore. */
#define DVM_PLUGIN_STATELESS(name, version, payload, functions) \
    DVM_PLUGIN_NOTE_(name, version, payload, "")                \
    DVM_PLUGIN_TABLE_(functions, DVM_FLAG_STATELESS, NULL)

/* The same for one with extensions. */
#define DVM_PLUGIN_EXTENDED(name, version, payload, functions, get_extension) \
    DVM_PLUGIN_NOTE_(name, version, payload, "\"snapshot\"")                  \
    DVM_PLUGIN_TABLE_(functions, 0, get_extension)

#define DVM_PLUGIN_MANIFEST_(name, version, payload, capabilities)                                                  \
    "{\"name\":\"" name "\",\"version\":\"" version "\",\"abi\":\"" DVM_PLUGIN_ABI_TEXT "\",\"payload\":\"" payload \
    "\",\"capabilities\":[" capabilities "]}"

#define DVM_PLUGIN_NOTE_(name, version, payload, capabilities)                                                     \
    static const struct {                                                                                          \
        uint32_t owner_size, content_size, kind;                                                                   \
        char owner[4];                                                                                             \
        char content[sizeof(DVM_PLUGIN_MANIFEST_(name, version, payload, capabilities))];                          \
    } dvm_plugin_note_ __attribute__((section(".note.dvm"), used, aligned(4))) = {                                 \
        4, sizeof(DVM_PLUGIN_MANIFEST_(name, version, payload, capabilities)), 1, "DVM",                           \
        DVM_PLUGIN_MANIFEST_(name, version, payload, capabilities)};

#define DVM_PLUGIN_TABLE_(functions, flags, get_extension)                                                  \
    const dvm_plugin_v1_t dvm_plugin_v1 = {sizeof(dvm_plugin_v1_t), DVM_PLUGIN_ABI, sizeof(dvm_functions_t), \
                                           flags, &(functions), get_extension};

/* Whether the host, or whoever made it, knows of this field of a structure. */
#define DVM_HAS(pointer, field) \
    ((size_t)((const char *)(&(pointer)->field + 1) - (const char *)(pointer)) <= (pointer)->struct_size)

/* ---- Helpers. Those up to the services of the host allocate nothing and keep nothing. ---- */

/* Writes bytes to the result. */
static inline void dvm_write(const dvm_out_t *out, const void *bytes, size_t size) {
    out->write(out->ctx, bytes, size);
}

/* Writes a reason as by printf, 1,023 bytes at most, and returns DVM_ERROR: `return dvm_fail(out, "no such %s", what);` */
__attribute__((format(printf, 2, 3))) static inline int dvm_fail(const dvm_out_t *out, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    dvm_write(out, text, strlen(text));
    return DVM_ERROR;
}

/* Writes a line to the log as by printf, 1,023 bytes at most. */
__attribute__((format(printf, 3, 4))) static inline void dvm_log(const dvm_host_t *host, int level, const char *format,
                                                                 ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    host->log(host->ctx, level, text);
}

/* The token under which the instance may act on the world now; 0 if it may not. */
static inline uint64_t dvm_token(const dvm_host_t *host) {
    return host->token(host->ctx);
}

/* ---- Reading a JSON object. Keys are compared as they are written, without escapes. ---- */

/* A field of an object: its key without quotes, its value as it is written. */
typedef struct dvm_field {
    const char *key, *value;
    size_t key_size, value_size;
} dvm_field_t;

static inline size_t dvm_json_blank_(const char *json, size_t size, size_t at) {
    while (at < size && (json[at] == ' ' || json[at] == '\t' || json[at] == '\n' || json[at] == '\r'))
        at++;
    return at;
}

/* Behind the string that begins at `at`; 0: it does not end. */
static inline size_t dvm_json_string_(const char *json, size_t size, size_t at) {
    for (at++; at < size; at++) {
        if (json[at] == '\\')
            at++;
        else if (json[at] == '"')
            return at + 1;
    }
    return 0;
}

/* Behind the value that begins at `at`; 0: there is none, or it does not end. */
static inline size_t dvm_json_value_(const char *json, size_t size, size_t at) {
    size_t from = at, depth = 0;
    while (at < size) {
        char c = json[at];
        if (c == '"') {
            at = dvm_json_string_(json, size, at);
            if (at == 0)
                return 0;
        } else if (c == '{' || c == '[') {
            depth++, at++;
        } else if (depth > 0 && (c == '}' || c == ']')) {
            depth--, at++;
        } else if (depth == 0 && (c == ',' || c == '}' || c == ']' || dvm_json_blank_(json, size, at) > at)) {
            return at > from ? at : 0;
        } else {
            at++;
            continue; /* inside a number or a word, or between the values of a deeper one */
        }
        if (depth == 0)
            return at;
    }
    return 0;
}

/* Steps through an object: *at is 0 at first. 1: *field is the next one. 0: there is no more. -1: it is no object. */
static inline int dvm_next_field(const char *json, size_t size, size_t *at, dvm_field_t *field) {
    size_t here = dvm_json_blank_(json, size, *at), end;
    if (here < size && json[here] == (*at == 0 ? '{' : ',')) {
        int first = *at == 0;
        here = dvm_json_blank_(json, size, here + 1);
        if (first && here < size && json[here] == '}')
            return dvm_json_blank_(json, size, here + 1) == size ? 0 : -1;
    } else {
        return *at > 0 && here < size && json[here] == '}' && dvm_json_blank_(json, size, here + 1) == size ? 0 : -1;
    }
    if (here >= size || json[here] != '"' || (end = dvm_json_string_(json, size, here)) == 0)
        return -1;
    field->key = json + here + 1;
    field->key_size = end - here - 2;
    here = dvm_json_blank_(json, size, end);
    if (here >= size || json[here] != ':')
        return -1;
    here = dvm_json_blank_(json, size, here + 1);
    if ((end = dvm_json_value_(json, size, here)) == 0)
        return -1;
    field->value = json + here;
    field->value_size = end - here;
    *at = end;
    return 1;
}

/* Whether a field has this key. */
static inline int dvm_is(const dvm_field_t *field, const char *key) {
    return strlen(key) == field->key_size && memcmp(field->key, key, field->key_size) == 0;
}

/* Finds a field, whatever its value is. 1: found. 0: there is none. -1: it is no object. */
static inline int dvm_get(const char *json, size_t size, const char *key, dvm_field_t *field) {
    size_t at = 0;
    int found;
    while ((found = dvm_next_field(json, size, &at, field)) > 0 && !dvm_is(field, key)) {
    }
    return found;
}

/* The next four: 1: *value is the field's. 0: there is no such field, and *value is as before. -1: the text is no object, or
 * the field is of another kind or does not fit, and *value is as before. */
static inline int dvm_get_int(const char *json, size_t size, const char *key, int64_t *value) {
    dvm_field_t field;
    int found = dvm_get(json, size, key, &field);
    if (found <= 0)
        return found;
    int negative = field.value[0] == '-';
    size_t at = negative ? 1 : 0;
    if (at == field.value_size)
        return -1;
    int64_t sum = 0; /* counted below zero, where there is room for one more */
    for (; at < field.value_size; at++) {
        int digit = field.value[at] - '0';
        if (digit < 0 || digit > 9 || sum < (INT64_MIN + digit) / 10)
            return -1;
        sum = sum * 10 - digit;
    }
    if (!negative && sum == INT64_MIN)
        return -1;
    *value = negative ? sum : -sum;
    return 1;
}

static inline int dvm_get_bool(const char *json, size_t size, const char *key, int *value) {
    dvm_field_t field;
    int found = dvm_get(json, size, key, &field);
    if (found <= 0)
        return found;
    if (field.value_size == 4 && memcmp(field.value, "true", 4) == 0)
        *value = 1;
    else if (field.value_size == 5 && memcmp(field.value, "false", 5) == 0)
        *value = 0;
    else
        return -1;
    return 1;
}

static inline int dvm_get_double(const char *json, size_t size, const char *key, double *value) {
    dvm_field_t field;
    char text[64], *end;
    int found = dvm_get(json, size, key, &field);
    if (found <= 0)
        return found;
    if (field.value_size >= sizeof text || strchr("-0123456789", field.value[0]) == NULL)
        return -1;
    memcpy(text, field.value, field.value_size);
    text[field.value_size] = '\0';
    double number = strtod(text, &end);
    if (end == text || *end != '\0')
        return -1;
    *value = number;
    return 1;
}

/* The code of four hexadecimal digits at `at`; -1: there are none. */
static inline int32_t dvm_json_code_(const char *text, size_t size, size_t at) {
    int32_t code = 0;
    if (size < 4 || at > size - 4)
        return -1;
    for (size_t digit = at; digit < at + 4; digit++) {
        char c = text[digit];
        int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (value < 0)
            return -1;
        code = code * 16 + value;
    }
    return code;
}

/* What stands between the quotes of a string, as UTF-8 with a zero at its end. */
static inline int dvm_json_unescape_(const char *text, size_t length, char *value, size_t capacity) {
    /* Twice: whether it fits comes before anything is stored. */
    for (int store = 0; store < 2; store++) {
        size_t used = 0;
        for (size_t at = 0; at < length;) {
            unsigned char bytes[4];
            size_t count = 1;
            if (text[at] != '\\') {
                bytes[0] = (unsigned char)text[at++];
            } else if (text[at + 1] != 'u') {
                const char *from = "\"\\/bfnrt", *to = "\"\\/\b\f\n\r\t", *which = strchr(from, text[at + 1]);
                if (text[at + 1] == '\0' || which == NULL)
                    return -1;
                bytes[0] = (unsigned char)to[which - from];
                at += 2;
            } else {
                int32_t code = dvm_json_code_(text, length, at + 2);
                at += 6;
                if (code >= 0xd800 && code < 0xdc00) {
                    int pair = at + 1 < length && text[at] == '\\' && text[at + 1] == 'u';
                    int32_t low = pair ? dvm_json_code_(text, length, at + 2) : -1;
                    if (low < 0xdc00 || low > 0xdfff)
                        return -1;
                    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    at += 6;
                } else if (code <= 0 || (code >= 0xdc00 && code <= 0xdfff)) {
                    return -1;
                }
                count = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
                for (size_t last = count; last > 1; last--, code >>= 6)
                    bytes[last - 1] = (unsigned char)(0x80 | (code & 0x3f));
                bytes[0] = (unsigned char)(count == 1 ? code : (0xf00 >> count & 0xff) | code);
            }
            if (used + count >= capacity || bytes[0] == 0)
                return -1;
            if (store)
                memcpy(value + used, bytes, count);
            used += count;
        }
        if (used >= capacity)
            return -1;
        if (store)
            value[used] = '\0';
    }
    return 1;
}

/* A field's key without escapes, and its value if that is a string, as UTF-8 with a zero at the end. 1, or -1: it is no string,
 * does not fit into `capacity` bytes, or has a zero within. */
static inline int dvm_field_key(const dvm_field_t *field, char *key, size_t capacity) {
    return dvm_json_unescape_(field->key, field->key_size, key, capacity);
}

static inline int dvm_field_string(const dvm_field_t *field, char *value, size_t capacity) {
    if (field->value[0] != '"')
        return -1;
    return dvm_json_unescape_(field->value + 1, field->value_size - 2, value, capacity);
}

static inline int dvm_get_string(const char *json, size_t size, const char *key, char *value, size_t capacity) {
    dvm_field_t field;
    int found = dvm_get(json, size, key, &field);
    return found <= 0 ? found : dvm_field_string(&field, value, capacity);
}

/* ---- Writing a JSON object: dvm_begin, any number of dvm_put_..., dvm_end. ---- */

/* An object that is being written. */
typedef struct dvm_object {
    const dvm_out_t *out;
    int fields;
} dvm_object_t;

static inline void dvm_json_text_(const dvm_out_t *out, const char *text) {
    dvm_write(out, "\"", 1);
    for (const char *from = text;; text++) {
        unsigned char c = (unsigned char)*text;
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        dvm_write(out, from, (size_t)(text - from));
        if (c == 0)
            break;
        char escaped[8];
        snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned)c);
        dvm_write(out, escaped, 6);
        from = text + 1;
    }
    dvm_write(out, "\"", 1);
}

static inline void dvm_json_key_(dvm_object_t *object, const char *key) {
    if (object->fields++ > 0)
        dvm_write(object->out, ",", 1);
    dvm_json_text_(object->out, key);
    dvm_write(object->out, ":", 1);
}

/* Begins an object. */
static inline dvm_object_t dvm_begin(const dvm_out_t *out) {
    dvm_object_t object = {out, 0};
    dvm_write(out, "{", 1);
    return object;
}

/* Ends it, and returns DVM_DONE: `return dvm_end(&object);` */
static inline int dvm_end(dvm_object_t *object) {
    dvm_write(object->out, "}", 1);
    return DVM_DONE;
}

/* A field whose value is JSON already. */
static inline void dvm_put_json(dvm_object_t *object, const char *key, const char *json) {
    dvm_json_key_(object, key);
    dvm_write(object->out, json, strlen(json));
}

static inline void dvm_put_int(dvm_object_t *object, const char *key, int64_t value) {
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, value);
    dvm_put_json(object, key, text);
}

static inline void dvm_put_bool(dvm_object_t *object, const char *key, int value) {
    dvm_put_json(object, key, value ? "true" : "false");
}

/* A number that reads back as it was; null for what JSON has no number for. */
static inline void dvm_put_double(dvm_object_t *object, const char *key, double value) {
    char text[32];
    snprintf(text, sizeof text, "%.17g", value);
    dvm_put_json(object, key, value - value == 0 ? text : "null");
}

/* UTF-8 that ends with a zero; NULL is null. */
static inline void dvm_put_string(dvm_object_t *object, const char *key, const char *value) {
    if (value == NULL) {
        dvm_put_json(object, key, "null");
        return;
    }
    dvm_json_key_(object, key);
    dvm_json_text_(object->out, value);
}

/* ---- Services of the host. Each asks, waits for the answer, and writes it, or the error's text, to *answer. ----
 *
 * When each may be asked, by which thread, and what may go wrong is in docs/host-services.md. They return DVM_DONE, or DVM_ERROR.
 * The texts that they need they allocate and free before they return; a dvm_text_t is yours to free. */

/* A text that grows: begin with DVM_TEXT, end with dvm_text_free. `at` ends with a zero byte that `size` does not count; NULL: empty. */
typedef struct dvm_text {
    char *at;
    size_t size, capacity;
    int full; /* there was no memory for all of it */
} dvm_text_t;

#define DVM_TEXT {NULL, 0, 0, 0}

static inline void dvm_text_free(dvm_text_t *text) {
    free(text->at);
    memset(text, 0, sizeof *text);
}

static inline void dvm_text_write_(void *ctx, const void *bytes, size_t size) {
    dvm_text_t *text = (dvm_text_t *)ctx;
    if (text->full)
        return;
    if (text->capacity - text->size <= size) {
        size_t capacity = text->capacity * 2 + size + 64;
        char *at = (char *)realloc(text->at, capacity);
        if (at == NULL) {
            text->full = 1;
            return;
        }
        text->at = at;
        text->capacity = capacity;
    }
    memcpy(text->at + text->size, bytes, size);
    text->size += size;
    text->at[text->size] = '\0';
}

/* An out that appends to a text. */
static inline dvm_out_t dvm_text_out(dvm_text_t *text) {
    dvm_out_t out = {sizeof(dvm_out_t), text, dvm_text_write_};
    return out;
}

/* Asks for a service, in JSON, and writes the answer to *answer in place of what was there. answer may be NULL. */
static inline int dvm_ask(const dvm_host_t *host, const char *json, size_t size, dvm_text_t *answer) {
    dvm_text_t none = DVM_TEXT;
    dvm_text_t *told = answer == NULL ? &none : answer;
    dvm_text_free(told);
    dvm_out_t out = dvm_text_out(told);
    int done = DVM_ERROR;
    if (DVM_HAS(host, ask) && host->ask != NULL)
        done = host->ask(host->ctx, json, size, &out);
    else
        dvm_fail(&out, "this host is older than host services; update the kernel");
    if (told->full)
        done = DVM_ERROR;
    dvm_text_free(&none);
    return done;
}

/* A service that is being asked for: its fields are put between dvm_asking and dvm_asked. */
typedef struct dvm_asking {
    dvm_text_t text;
    dvm_out_t out;
    dvm_object_t fields;
} dvm_asking_t;

static inline void dvm_asking(dvm_asking_t *asking, const char *service) {
    memset(asking, 0, sizeof *asking);
    asking->out = dvm_text_out(&asking->text);
    dvm_write(&asking->out, "{", 1);
    dvm_json_text_(&asking->out, service);
    dvm_write(&asking->out, ":", 1);
    asking->fields = dvm_begin(&asking->out);
}

static inline int dvm_asked(const dvm_host_t *host, dvm_asking_t *asking, dvm_text_t *answer) {
    dvm_end(&asking->fields);
    dvm_write(&asking->out, "}", 1);
    int done = DVM_ERROR;
    if (!asking->text.full)
        done = dvm_ask(host, asking->text.at, asking->text.size, answer);
    dvm_text_free(&asking->text);
    return done;
}

/* An ordered command to another plug-in; *answer is its reply. */
static inline int dvm_host_call(const dvm_host_t *host, const char *plugin, const char *command, uint32_t timeout_ms,
                                dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "call");
    dvm_put_string(&asking.fields, "plugin", plugin);
    dvm_put_json(&asking.fields, "command", command);
    dvm_put_int(&asking.fields, "timeout_ms", timeout_ms);
    return dvm_asked(host, &asking, answer);
}

/* An ordered command to all instances of this plug-in; nobody waits for a reply. {"index":N} */
static inline int dvm_host_broadcast(const dvm_host_t *host, const char *command, dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "broadcast");
    dvm_put_json(&asking.fields, "command", command);
    return dvm_asked(host, &asking, answer);
}

/* A message to the instance on a member, at most once: an event `message` there. */
static inline int dvm_host_send(const dvm_host_t *host, const char *member, const char *body, dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "send");
    dvm_put_string(&asking.fields, "member", member);
    dvm_put_json(&asking.fields, "body", body);
    return dvm_asked(host, &asking, answer);
}

/* A key: {"value":V,"version":N}, or null. */
static inline int dvm_host_get(const dvm_host_t *host, const char *key, dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "get");
    dvm_put_string(&asking.fields, "key", key);
    return dvm_asked(host, &asking, answer);
}

/* Sets a key: {"version":N}. version: only if it has this one, 0 for none at all, and null is the answer if not; -1: in any
 * case. */
static inline int dvm_host_put(const dvm_host_t *host, const char *key, const char *value, int64_t version,
                               dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "put");
    dvm_put_string(&asking.fields, "key", key);
    dvm_put_json(&asking.fields, "value", value);
    if (version >= 0)
        dvm_put_int(&asking.fields, "version", version);
    return dvm_asked(host, &asking, answer);
}

static inline int dvm_host_delete(const dvm_host_t *host, const char *key, dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "delete");
    dvm_put_string(&asking.fields, "key", key);
    return dvm_asked(host, &asking, answer);
}

/* An event `key-changed` for each change of a key that begins so; on: 1 begins it, 0 ends it. */
static inline int dvm_host_watch(const dvm_host_t *host, const char *prefix, int on, dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, on ? "watch" : "unwatch");
    dvm_put_string(&asking.fields, "prefix", prefix);
    return dvm_asked(host, &asking, answer);
}

/* An event `timer` after so long, and, where every_ms is not 0, again and again. */
static inline int dvm_host_timer(const dvm_host_t *host, const char *name, uint32_t after_ms, uint32_t every_ms,
                                 dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "timer");
    dvm_put_string(&asking.fields, "name", name);
    dvm_put_int(&asking.fields, "after_ms", after_ms);
    if (every_ms > 0)
        dvm_put_int(&asking.fields, "every_ms", every_ms);
    return dvm_asked(host, &asking, answer);
}

static inline int dvm_host_cancel_timer(const dvm_host_t *host, const char *name, dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "cancel-timer");
    dvm_put_string(&asking.fields, "name", name);
    return dvm_asked(host, &asking, answer);
}

/* Starts a process on a member, or follows the one that was started there under this key: events `process-started`,
 * `process-output`, `process-exit`. argv ends with NULL. */
static inline int dvm_host_spawn(const dvm_host_t *host, const char *member, const char *key, const char *const *argv,
                                 dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "spawn");
    dvm_put_string(&asking.fields, "member", member);
    dvm_put_string(&asking.fields, "key", key);
    dvm_json_key_(&asking.fields, "argv");
    for (size_t at = 0; argv[at] != NULL; at++) {
        dvm_write(&asking.out, at == 0 ? "[" : ",", 1);
        dvm_json_text_(&asking.out, argv[at]);
    }
    dvm_write(&asking.out, argv[0] == NULL ? "[]" : "]", argv[0] == NULL ? 2 : 1);
    return dvm_asked(host, &asking, answer);
}

static inline int dvm_host_kill(const dvm_host_t *host, const char *member, const char *key, dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "kill");
    dvm_put_string(&asking.fields, "member", member);
    dvm_put_string(&asking.fields, "key", key);
    return dvm_asked(host, &asking, answer);
}

/* The effects of all commands up to this one are done. */
static inline int dvm_host_done(const dvm_host_t *host, uint64_t index, dvm_text_t *answer) {
    dvm_asking_t asking;
    dvm_asking(&asking, "done");
    dvm_put_int(&asking.fields, "index", (int64_t)index);
    return dvm_asked(host, &asking, answer);
}

/* The commands whose effects nobody has marked: {"commands":[{"index":N,"command":C}],"more":false,"missed":false} */
static inline int dvm_host_undone(const dvm_host_t *host, dvm_text_t *answer) {
    return dvm_ask(host, "\"undone\"", 8, answer);
}

#endif
