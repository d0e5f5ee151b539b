#include "bpe.h"

#include <cstdio>
#include <cstring>
#include <queue>
#include <random>
#include <stdexcept>

namespace gmoe {
namespace {

std::vector<std::string_view> unpacked(PackedStrings s) {
  if (s.count > s.bytes / 8) throw std::invalid_argument("strings do not fit into their bytes");
  std::vector<int64_t> places(s.count + 1);
  if (!find_places(s, places.data())) throw std::invalid_argument("strings do not fit into their bytes");
  std::vector<std::string_view> all(s.count);
  for (size_t i = 0; i < s.count; i++) all[i] = {s.data + places[i] + 8, size_t(places[i + 1] - places[i] - 8)};
  return all;
}

size_t room_for(size_t count) {
  size_t size = 16;
  while (size < count + count / 2) size *= 2;
  return size;
}

// Of each table another one: a file cannot choose strings that meet in one place.
uint64_t drawn_seed() {
  std::random_device source;
  return uint64_t(source()) << 32 | source();
}

uint64_t mixed(uint64_t x, uint64_t seed) {
  x ^= seed;
  x = (x ^ (x >> 32)) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 29)) * 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

uint64_t hashed(std::string_view text, uint64_t h) {
  for (unsigned char c : text) h = (h ^ c) * 0x100000001b3u;
  return h;
}

size_t character(std::string_view text) {  // bytes of the first one
  const unsigned char c = static_cast<unsigned char>(text[0]);
  const size_t n = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
  return n < text.size() ? n : text.size();
}

}  // namespace

bool find_places(PackedStrings s, int64_t* places) {
  size_t at = 0;
  for (size_t i = 0; i < s.count; i++) {
    places[i] = int64_t(at);
    uint64_t n = 0;
    if (s.bytes - at < 8) return false;
    std::memcpy(&n, s.data + at, 8);
    if (n > s.bytes - at - 8) return false;
    at += 8 + size_t(n);
  }
  places[s.count] = int64_t(at);
  return true;
}

Bpe::Bpe(PackedStrings tokens, PackedStrings merges, bool whole, bool bytes)
    : seed_(drawn_seed()), whole_(whole), bytes_(bytes), tokens_(unpacked(tokens)),
      places_(room_for(tokens.count), none) {
  for (size_t id = 0; id < tokens_.size(); id++)
    if (!tokens_[id].empty()) places_[place(tokens_[id], {})] = uint32_t(id);
  for (int b = 0; b < 256; b++) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", b);
    byte_ids_[b] = find(name);
  }
  const std::vector<std::string_view> pairs = unpacked(merges);
  merges_.assign(room_for(pairs.size()), Merge{0, 0, none, 0});
  uint32_t rank = 0;
  for (std::string_view pair : pairs) {
    const size_t at = pair.find(' ', 1);
    if (at == pair.npos) continue;
    const std::string_view left = pair.substr(0, at), right = pair.substr(at + 1);
    const int64_t a = find(left), b = find(right), both = find(left, right);
    if (a < 0 || b < 0 || both < 0) continue;
    merge(uint32_t(a), uint32_t(b)) = {uint32_t(a), uint32_t(b), rank++, uint32_t(both)};
  }
}

size_t Bpe::place(std::string_view first, std::string_view second) const {
  const size_t size = first.size() + second.size(), last = places_.size() - 1;
  size_t at = mixed(hashed(second, hashed(first, seed_)), seed_) & last;
  for (; places_[at] != none; at = (at + 1) & last) {
    const std::string_view text = tokens_[places_[at]];
    if (text.size() == size && text.substr(0, first.size()) == first && text.substr(first.size()) == second) break;
  }
  return at;
}

int64_t Bpe::find(std::string_view first, std::string_view second) const {
  if (first.empty() && second.empty()) return -1;
  const uint32_t id = places_[place(first, second)];
  return id == none ? -1 : int64_t(id);
}

Bpe::Merge& Bpe::merge(uint32_t left, uint32_t right) {
  const size_t last = merges_.size() - 1;
  size_t at = mixed(uint64_t(left) << 32 | right, seed_) & last;
  while (merges_[at].rank != none && (merges_[at].left != left || merges_[at].right != right)) at = (at + 1) & last;
  return merges_[at];
}

const Bpe::Merge* Bpe::merge(uint32_t left, uint32_t right) const {
  const Merge& found = const_cast<Bpe*>(this)->merge(left, right);
  return found.rank == none ? nullptr : &found;
}

void Bpe::encode(std::string_view piece, std::vector<uint32_t>& ids) const {
  if (whole_) {
    const int64_t id = find(piece);
    if (id >= 0) return ids.push_back(uint32_t(id));
  }
  std::vector<Symbol> word;
  auto add = [&](int64_t id) { word.push_back({uint32_t(id), int(word.size()) - 1, int(word.size()) + 1, false}); };
  while (!piece.empty()) {
    const std::string_view c = piece.substr(0, character(piece));
    piece.remove_prefix(c.size());
    const int64_t id = find(c);
    if (id >= 0) {
      add(id);
      continue;
    }
    merge_all(word, ids);
    word.clear();
    for (unsigned char b : c)
      if (bytes_ && byte_ids_[b] >= 0) ids.push_back(uint32_t(byte_ids_[b]));
  }
  merge_all(word, ids);
}

void Bpe::merge_all(std::vector<Symbol>& word, std::vector<uint32_t>& ids) const {
  if (word.empty()) return;
  word.back().next = -1;
  struct Turn {
    uint32_t rank;
    int at;
    uint32_t id;
    bool operator<(const Turn& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  std::priority_queue<Turn> turns;
  auto consider = [&](int at) {
    const Merge* m = merge(word[at].id, word[word[at].next].id);
    if (m) turns.push({m->rank, at, m->id});
  };
  for (int at = 0; word[at].next >= 0; at++) consider(at);
  while (!turns.empty()) {
    const Turn turn = turns.top();
    turns.pop();
    Symbol& left = word[turn.at];
    if (left.gone || left.next < 0) continue;
    Symbol& right = word[left.next];
    const Merge* m = merge(left.id, right.id);
    if (!m || m->id != turn.id) continue;  // one of them has been merged with another
    left.id = turn.id;
    right.gone = true;
    left.next = right.next;
    if (left.next >= 0) {
      word[left.next].before = turn.at;
      consider(turn.at);
    }
    if (left.before >= 0) consider(left.before);
  }
  for (const Symbol& s : word)
    if (!s.gone) ids.push_back(s.id);
}

}  // namespace gmoe
