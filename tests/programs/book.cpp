// A telephone book in C++ that every member holds: {"name":NAME,"number":NUMBER} writes an entry, {"name":NAME} reads one.
//
// What C++ needs is said here: no exception leaves a callback. {"throw":MEMBER} shows what happens when one does.
#include "dvm.h"
#include <dvm_plugin.h>

#include <map>
#include <memory>
#include <stdexcept>
#include <string>

namespace {

struct Book {
    std::string member;
    std::map<std::string, std::string> numbers; // ordered, so that all instances go through it alike
    int events = 0;
};

Book *book(void *instance) {
    return static_cast<Book *>(instance);
}

int start(const char *, size_t, const dvm_place_t *place, const dvm_host_t *, void **instance, const dvm_out_t *out) {
    try {
        auto made = std::make_unique<Book>();
        made->member = place->member;
        *instance = made.release();
        return DVM_DONE;
    } catch (const std::exception &error) {
        return dvm_fail(out, "%s", error.what());
    }
}

std::string text(const char *command, size_t size, const char *key) {
    char value[64] = "";
    if (dvm_get_string(command, size, key, value, sizeof value) < 0)
        throw std::invalid_argument(std::string(key) + " is a text of at most 63 bytes");
    return value;
}

int apply(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out) {
    if (text(command, size, "throw") == book(instance)->member)
        throw std::runtime_error("nobody catches this");
    try {
        const std::string name = text(command, size, "name"), number = text(command, size, "number");
        if (!number.empty())
            book(instance)->numbers[name] = number;
        dvm_object_t reply = dvm_begin(out);
        dvm_put_string(&reply, "number", book(instance)->numbers[name].c_str());
        dvm_put_bool(&reply, "dated", meta->time > 0 && meta->index > 0 && DVM_HAS(meta, session));
        dvm_put_string(&reply, "session", meta->session);
        return dvm_end(&reply);
    } catch (const std::exception &error) {
        return dvm_fail(out, "%s", error.what());
    }
}

// How many failures and roles this instance was told of: not part of the state.
int query(void *instance, const char *, size_t, const dvm_out_t *out) {
    dvm_object_t reply = dvm_begin(out);
    dvm_put_int(&reply, "events", book(instance)->events);
    dvm_put_string(&reply, "member", book(instance)->member.c_str());
    return dvm_end(&reply);
}

void on_event(void *instance, const dvm_told_t *event) {
    char member[64] = "";
    const bool failed = std::string(event->kind) == "instance-failed";
    if (failed && dvm_get_string(event->json, event->json_size, "member", member, sizeof member) == 1)
        book(instance)->events++;
}

// A flat object is a state, too.
int snapshot(void *instance, const dvm_out_t *out) {
    dvm_object_t state = dvm_begin(out);
    for (const auto &entry : book(instance)->numbers)
        dvm_put_string(&state, entry.first.c_str(), entry.second.c_str());
    return dvm_end(&state);
}

int restore(void *instance, const void *state, size_t size, const dvm_out_t *out) {
    const char *json = static_cast<const char *>(state);
    dvm_field_t field;
    int found;
    try {
        for (size_t at = 0; (found = dvm_next_field(json, size, &at, &field)) > 0;) {
            char name[64], number[64];
            if (dvm_field_key(&field, name, sizeof name) < 0 || dvm_field_string(&field, number, sizeof number) < 0)
                return dvm_fail(out, "this is no book");
            book(instance)->numbers[name] = number;
        }
        return found < 0 ? dvm_fail(out, "this is no book") : static_cast<int>(DVM_DONE);
    } catch (const std::exception &error) {
        return dvm_fail(out, "%s", error.what());
    }
}

void stop(void *instance) {
    delete book(instance);
}

// In the order of dvm_plugin.h. From C++20 on they can be named as in C.
const dvm_functions_t functions = {
    nullptr, start, apply, query, nullptr, on_event, nullptr, nullptr, snapshot, restore, stop,
};

} // namespace

DVM_PLUGIN("book", "0.1.0", DVM_JSON, functions)
