// From C++'s exceptions to the status that Python sees.

#pragma once

#include <new>
#include <stdexcept>

#include "interface.h"

// Runs the body of an exported function. What it throws becomes the status that is returned: a `status` itself, or what
// the standard library throws where there is no memory. No exception may cross extern "C".
template <class F>
static int32_t guarded(const F& body) noexcept {
    try {
        body();
        return OK;
    } catch (status failed) {
        return failed;
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    } catch (const std::length_error&) {  // more than a vector can ever hold
        return OUT_OF_MEMORY;
    } catch (...) {
        return FAILED;
    }
}
