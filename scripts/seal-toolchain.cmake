# How Microsoft SEAL is built inside the Pyfhel wheel. Named by CMAKE_TOOLCHAIN_FILE, because Pyfhel passes its own
# values on cmake's command line and only a forced cache entry outlives those.
#
# Without its three optional libraries SEAL needs a C++ compiler and nothing from outside; we compress, where at
# all, outside the library. No -march=native: the wheel must run and compute the same on every machine.
set(SEAL_USE_MSGSL OFF CACHE BOOL "" FORCE)
set(SEAL_USE_ZLIB OFF CACHE BOOL "" FORCE)
set(SEAL_USE_ZSTD OFF CACHE BOOL "" FORCE)

# A zero weight is a legal weight: its product is transparent and must not raise. Transparent ciphertexts from
# outside are refused by he/gate.py before the library sees them.
set(SEAL_THROW_ON_TRANSPARENT_CIPHERTEXT OFF CACHE BOOL "" FORCE)
