// Ragged lists of fragments in one launch.
//
// S *streams* (a task's gradients, a diagonal, an output) are lists of F fragments cut alike. Fragments are cut into
// chunks of a fixed number of granules (16 bytes of the first stream), one block each; a block finds its fragment by
// bisection of the cumulative numbers of chunks. Which elements a chunk holds depends on lengths and on addresses
// modulo 16, never on the device, so neither does any order of summation.
//
// Fragments that are views of a flat buffer start anywhere. A fragment's granules are therefore counted from the last
// multiple of 16 bytes at or before its start, `shift` elements earlier; elements before 0 and from n on are left out.
// Where all streams agree on the shift, all but the first and last granule move as 16 bytes; a stream that does not
// agree is moved element by element (right, but slower).
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/device.cuh"

namespace mnmt {
namespace cuda {

// Streams of one role, which move as granules or element by element together.
struct StreamClass {
  const std::int64_t* addresses;  // [streams * fragments], stream-major
  std::int64_t streams;
  int bytes;   // of an element
  int weight;  // how much is lost where it has to move element by element
};

// The int64 table of a call, on the host and then on the device: first chunk of each fragment [F + 1], lengths [F],
// layouts [F], then the addresses class by class, then whatever the op appends.
struct Table {
  const std::int64_t* first;
  const std::int64_t* length;
  const std::int64_t* layout;
  const std::int64_t* address;
  std::int64_t fragments;
};

inline std::int64_t table_header(std::int64_t fragments) { return 3 * fragments + 1; }

inline Table table_at(const std::int64_t* base, std::int64_t fragments) {
  return {base, base + fragments + 1, base + 2 * fragments + 1, base + table_header(fragments), fragments};
}

// A layout is the shift in the low 8 bits, and bit 8 + c where class c moves as granules.
inline std::int64_t choose_layout(const StreamClass* classes, int count, std::int64_t fragments, std::int64_t fragment,
                                  int width) {
  std::int64_t best = 0;
  int best_score = -1;
  for (int shift = 0; shift < width; ++shift) {
    std::int64_t layout = shift;
    int score = 0;
    for (int c = 0; c < count; ++c) {
      bool whole = true;
      for (std::int64_t s = 0; s < classes[c].streams && whole; ++s)
        whole = (classes[c].addresses[s * fragments + fragment] - shift * classes[c].bytes) % 16 == 0;
      if (whole) {
        layout |= std::int64_t{256} << c;
        score += classes[c].weight;
      }
    }
    if (score > best_score) best = layout, best_score = score;
  }
  return best;
}

// Fills the table up to the addresses, included, and returns the number of chunks. `width`: elements of a granule.
inline std::int64_t fill_table(const StreamClass* classes, int count, const std::int64_t* lengths,
                               std::int64_t fragments, int width, std::int64_t granules_per_chunk,
                               std::int64_t* table) {
  std::int64_t chunks = 0;
  for (std::int64_t f = 0; f < fragments; ++f) {
    const std::int64_t layout = choose_layout(classes, count, fragments, f, width);
    const std::int64_t per_chunk = granules_per_chunk * width;
    table[f] = chunks;
    table[fragments + 1 + f] = lengths[f];
    table[2 * fragments + 1 + f] = layout;
    if (lengths[f] > 0) chunks += ((layout & 255) + lengths[f] + per_chunk - 1) / per_chunk;
  }
  table[fragments] = chunks;
  std::int64_t* out = table + table_header(fragments);
  for (int c = 0; c < count; ++c)
    for (std::int64_t i = 0; i < classes[c].streams * fragments; ++i) *out++ = classes[c].addresses[i];
  return chunks;
}

// Elements [begin, end) of a fragment of n elements; begin may be negative, by the shift.
struct Chunk {
  std::int64_t fragment, begin, end, n;
  std::int64_t layout;
  __device__ bool whole(int stream_class) const { return layout >> (8 + stream_class) & 1; }
};

__device__ inline Chunk find_chunk(const Table& table, std::int64_t chunk, std::int64_t elements_per_chunk) {
  std::int64_t low = 0, high = table.fragments;  // first[low] <= chunk < first[high]
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    if (table.first[middle] <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const std::int64_t n = table.length[low], layout = table.layout[low];
  const std::int64_t begin = (chunk - table.first[low]) * elements_per_chunk - (layout & 255);
  const std::int64_t end = begin + elements_per_chunk;
  return {low, begin, end < n ? end : n, n, layout};
}

template <class T>
__device__ T* address_of(const Table& table, std::int64_t stream, std::int64_t fragment) {
  return reinterpret_cast<T*>(table.address[stream * table.fragments + fragment]);
}

}  // namespace cuda
}  // namespace mnmt
