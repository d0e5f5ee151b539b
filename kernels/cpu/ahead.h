// What is read behind a tile, asked for a part at a time: what is asked for at once waits for each other, or is not
// brought at all. Beyond the weights' end asking does nothing.

class Ahead {
 public:
  // `bytes` from byte `from` of the strip behind row `r` of a job whose whole strips end at `strips`.
  Ahead(const Job& job, int r, int strips, size_t from, int bytes, int parts) : step_((bytes / parts + 63) / 64 * 64) {
    const uint8_t* strip = r + 16 < strips ? job.weights + size_t(r + 16) * job.row_bytes : job.next;
    left_ = strip ? bytes : 0;
    at_ = strip ? strip + from : nullptr;
  }
  void ask() { ask(step_ < left_ ? step_ : left_); }
  void ask_for_all() { ask(left_); }

 private:
  void ask(int bytes) {
    left_ -= bytes;
    for (const uint8_t* stop = at_ + bytes; at_ < stop; at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

  const uint8_t* at_;
  int step_, left_;
};
