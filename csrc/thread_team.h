// A fixed team of worker threads that run one function together, phase by phase.
//
// The caller is thread 0. Between calls the workers spin for a moment (the next decode step follows
// soon) and then sleep in the kernel. Inside a call `barrier` separates phases, and `for_chunks`
// shares out the work of one phase: every thread starts in its own contiguous share (so weights
// stay in the memory of the NUMA node that packed them) and then takes what slower ones have left.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace rillm {

class ThreadTeam {
 public:
  // cpus: [num_threads] CPU numbers to pin to, or null. Throws std::system_error.
  ThreadTeam(int num_threads, const int32_t* cpus);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs body(thread) on every thread and returns when all have. Calls must not nest; calls from
  // several threads take turns.
  template <class Fn>
  void parallel(Fn&& body) {
    using Body = std::remove_reference_t<Fn>;
    run([](void* context, int thread) { (*static_cast<Body*>(context))(thread); },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

  // Every thread waits until all have come. Also opens the next for_chunks phase.
  void barrier();

  // Where thread `owner`'s share of num_chunks begins. What is shared out twice by this (the tiles
  // of a matrix, when they are packed and when they are multiplied) falls to the same threads.
  int64_t share_begin(int64_t num_chunks, int owner) const {
    return num_chunks * owner / num_threads_;
  }

  // Calls body(chunk) once for each chunk in [0, num_chunks), over all threads. At most one
  // for_chunks between two barriers; every thread must take part.
  template <class Fn>
  void for_chunks(int thread, int64_t num_chunks, Fn&& body) {
    const auto begin = [&](int owner) { return share_begin(num_chunks, owner); };
    for_shares(
        thread, [&](int owner) { return begin(owner + 1) - begin(owner); },
        [&](int owner, int64_t i) { body(begin(owner) + i); });
  }

  // The same where thread `owner` has size(owner) chunks of its own: calls body(owner, i) for each
  // i < size(owner), on that thread or on one that is done with its own.
  template <class Size, class Fn>
  void for_shares(int thread, Size&& size, Fn&& body) {
    for (int k = 0; k < num_threads_; ++k) {
      const int owner = thread + k < num_threads_ ? thread + k : thread + k - num_threads_;
      const int64_t count = size(owner);
      std::atomic<int64_t>& taken = shares_[owner].taken;
      while (taken.load(std::memory_order_relaxed) < count) {
        const int64_t i = taken.fetch_add(1, std::memory_order_relaxed);
        if (i >= count) break;
        body(owner, i);
      }
    }
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> taken{0};
  };

  void run(void (*body)(void*, int), void* context);
  void work(int thread);

  const int num_threads_;
  std::unique_ptr<Share[]> shares_;
  std::vector<std::jthread> workers_;
  std::atomic_flag busy_;

  void (*body_)(void*, int) = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> call_{0};  // counts run(); workers wait for it to change
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};  // counts barriers
  std::atomic<bool> stop_{false};
};

}  // namespace rillm

struct CoreTeam {
  rillm::ThreadTeam threads;
};
