// Byte pair encoding over strings that stay where they lie: a hash table of the tokens and one of the merges.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace gmoe {

// Strings one behind the other, each after its length in eight bytes, as a GGUF file has them.
struct PackedStrings {
  const char* data;
  size_t bytes, count;
};

// Where each of them and the end begins, [count + 1]; false where they do not fit into their bytes.
bool find_places(PackedStrings strings, int64_t* places);

class Bpe {
 public:
  // Both must stay. A merge is two tokens with a space between; what is not made of tokens is left out. Throws
  // std::invalid_argument where strings do not fit into their bytes.
  Bpe(PackedStrings tokens, PackedStrings merges, bool whole, bool bytes);

  // The id of a token, the last of equals; -1 where there is none.
  int64_t find(std::string_view text) const { return find(text, {}); }

  // Appends the ids of a piece of UTF-8: pairs of lowest rank are merged first, the leftmost of equals. A character
  // that is no token becomes its bytes' tokens, if `bytes`, or nothing, and parts its neighbours; a piece that is a
  // token stays `whole`, if that is set.
  void encode(std::string_view piece, std::vector<uint32_t>& ids) const;

 private:
  struct Merge {
    uint32_t left, right, rank, id;  // rank none: an empty place
  };
  struct Symbol {
    uint32_t id;
    int before, next;
    bool gone;
  };
  static constexpr uint32_t none = UINT32_MAX;

  int64_t find(std::string_view first, std::string_view second) const;  // of both together
  size_t place(std::string_view first, std::string_view second) const;
  Merge& merge(uint32_t left, uint32_t right);
  const Merge* merge(uint32_t left, uint32_t right) const;
  void merge_all(std::vector<Symbol>& word, std::vector<uint32_t>& ids) const;

  uint64_t seed_;  // of both tables' hashes
  bool whole_, bytes_;
  std::vector<std::string_view> tokens_;
  std::vector<uint32_t> places_;  // ids by hash, none where free; a power of two
  std::vector<Merge> merges_;     // by hash of the pair; a power of two
  int64_t byte_ids_[256];
};

}  // namespace gmoe
