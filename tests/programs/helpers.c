/* What the helpers of dvm_plugin.h make of good and of bad texts. Writes what they write; a wrong one ends it. */
#include "check.h"
#include <dvm_plugin.h>
#include <math.h>
/* Both headers in one file, in this order as in the other. */
#include <dvm.h>

#define TEXT(text) text, strlen(text)

static void print(void *ctx, const void *bytes, size_t size) {
    (void)ctx;
    fwrite(bytes, 1, size, stdout);
}

static const char *const object =
    "{\"a\":1, \"min\" : -9223372036854775808,\"big\":9223372036854775808,\"deep\":[1,{\"a\":2},\"}\\\"]\"],"
    "\"t\":true,\"f\":false,\"s\":\"h\\u00e9\\n\\ud83d\\ude00\\\"\",\"d\":-1.5e3,\"zero\":\"a\\u0000\",\"e\":\"\",\"null\":null}";

static void numbers(void) {
    int64_t integer = 7;
    int truth = 5;
    double real = 1;
    check(dvm_get_int(TEXT(object), "a", &integer) == 1 && integer == 1, "an integer");
    check(dvm_get_int(TEXT(object), "min", &integer) == 1 && integer == INT64_MIN, "the least integer");
    check(dvm_get_int(TEXT(object), "big", &integer) == -1 && integer == INT64_MIN, "an integer that does not fit");
    check(dvm_get_int(TEXT(object), "d", &integer) == -1, "a number that is no integer");
    check(dvm_get_int(TEXT(object), "none", &integer) == 0 && integer == INT64_MIN, "no field");
    check(dvm_get_bool(TEXT(object), "t", &truth) == 1 && truth == 1, "true");
    check(dvm_get_bool(TEXT(object), "f", &truth) == 1 && truth == 0, "false");
    check(dvm_get_bool(TEXT(object), "a", &truth) == -1, "1 is not true");
    check(dvm_get_double(TEXT(object), "d", &real) == 1 && real == -1500, "a number");
    check(dvm_get_double(TEXT(object), "s", &real) == -1, "a string is no number");
    check(dvm_get_double(TEXT(object), "null", &real) == -1 && real == -1500, "null is no number");
}

static void strings(void) {
    char text[64] = "before";
    check(dvm_get_string(TEXT(object), "a", text, sizeof text) == -1 && strcmp(text, "before") == 0, "1 is no string");
    check(dvm_get_string(TEXT(object), "s", text, 9) == -1 && strcmp(text, "before") == 0, "one byte too few");
    check(dvm_get_string(TEXT(object), "s", text, 10) == 1, "room enough");
    check(strcmp(text, "h\xc3\xa9\n\xf0\x9f\x98\x80\"") == 0, "escapes");
    dvm_field_t field;
    size_t at = 0;
    check(dvm_next_field(TEXT("{\"\\u00e9\\\"\":\"x\"}"), &at, &field) == 1, "a key with escapes");
    check(dvm_field_key(&field, text, sizeof text) == 1 && strcmp(text, "\xc3\xa9\"") == 0, "its escapes");
    check(dvm_get_string(TEXT(object), "zero", text, sizeof text) == -1, "a zero within");
    check(dvm_get_string(TEXT(object), "e", text, 1) == 1 && text[0] == '\0', "the empty string");
    check(dvm_get_string(TEXT(object), "e", text, 0) == -1, "no room for its end");
}

static void fields(void) {
    dvm_field_t field;
    size_t at = 0, count = 0;
    while (dvm_next_field(TEXT(object), &at, &field) > 0)
        count++;
    check(count == 11 && dvm_next_field(TEXT(object), &at, &field) == 0, "all fields");
    check(dvm_get(TEXT(" { } "), "a", &field) == 0, "an object without fields");
    static const char *const none[] = {"", "{", "[1]", "{\"a\"", "{\"a\":", "{\"a\":}", "{\"a\":1", "{\"a\":1,}", "{\"a\":1}x",
                                       "{} x", "\"a", "{,}", "{\"a\":[1}", "null", "{\"a\":\"x"};
    for (size_t which = 0; which < sizeof none / sizeof *none; which++)
        check(dvm_get(TEXT(none[which]), "other", &field) == -1, none[which]);
}

/* Texts of the characters that matter, in memory that ends where they do: nothing may be read behind them. */
static void nonsense(void) {
    uint32_t random = 1;
    for (int round = 0; round < 100000; round++) {
        size_t size = 1 + (random >> 8) % 39;
        char *text = malloc(size), key[40], value[16];
        int64_t integer;
        double real;
        if (text == NULL)
            wrong("out of memory");
        for (size_t at = 0; at < size; at++) {
            random = random * 1664525 + 1013904223;
            text[at] = "{}[]\":,\\u0a1tf -"[(random >> 8) % 17];
        }
        text[0] = '{';
        dvm_field_t field;
        for (size_t at = 0; dvm_next_field(text, size, &at, &field) > 0;) {
            memcpy(key, field.key, field.key_size);
            key[field.key_size] = '\0';
            dvm_field_key(&field, value, sizeof value);
            dvm_get_string(text, size, key, value, sizeof value);
            dvm_get_int(text, size, key, &integer);
            dvm_get_double(text, size, key, &real);
        }
        free(text);
    }
}

int main(void) {
    dvm_out_t out = {sizeof out, NULL, print};
    check(DVM_PLUGIN == 0x04, "the family of dvm.h beside the macro of dvm_plugin.h");
    numbers();
    strings();
    fields();
    nonsense();
    dvm_object_t reply = dvm_begin(&out);
    dvm_put_int(&reply, "i", INT64_MIN);
    dvm_put_string(&reply, "s", "q\"\\\n\x01 h\xc3\xa9");
    dvm_put_bool(&reply, "b", 5);
    dvm_put_double(&reply, "d", 0.1);
    dvm_put_string(&reply, "n", NULL);
    dvm_put_double(&reply, "infinite", HUGE_VAL);
    check(dvm_end(&reply) == DVM_DONE, "an object is a result");
    printf("\n");
    check(dvm_fail(&out, "no such %s", "thing") == DVM_ERROR, "a failure");
    printf("\n");
    return 0;
}
