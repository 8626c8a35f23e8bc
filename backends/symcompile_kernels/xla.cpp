/* The kernels on XLA's own threads, as handlers of its foreign functions: JAX calls them through
   jax.ffi. Arrays are contiguous; how the axes of each are read is said by its steps. */

#include "kernels.hpp"
#include "products.hpp"
#include "xla/ffi/api/ffi.h"
#include <atomic>
#include <memory>
#include <thread>
#include <vector>
#ifdef __linux__
#include <sched.h>
#endif

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Made = ffi::Result<Floats>;
using Numbers = ffi::Span<const i64>;

constexpr size_t STREAMED = 1 << 23; // bytes of a result from which it is written past the caches
constexpr i64 CLAIMS = 16;           // how often a thread claims items, of many

/* Linux may wake a thread on the core of the one that woke it, where it waits for milliseconds, or
   they take turns, while another core is idle. One that finds itself there goes to another of the
   cores that it may run on. */
#ifdef __linux__
static int core() { return sched_getcpu(); }

static void leave(int core) {
  cpu_set_t all, others;
  if (core < 0 || sched_getcpu() != core || sched_getaffinity(0, sizeof all, &all)) return;
  others = all;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others)) return;
  sched_setaffinity(0, sizeof all, &all);
}
#else
static int core() { return -1; }

static void leave(int) {}
#endif

static std::atomic<i64> running{0}; // kernels

/* The caller works too, so that all is done even if no other thread ever has time. */
struct Pool {
  ffi::ThreadPool &pool;
  i64 threads;

  explicit Pool(ffi::ThreadPool &pool)
      : pool(pool), threads(pool.num_threads() > 1 ? pool.num_threads() : 1) {}

  struct Progress {
    std::atomic<i64> claimed{0}, done{0};
  };

  template <typename Work>
  void run(i64 count, const Work &work) const {
    if (count == 0) return;
    const i64 part = parts_of(count, CLAIMS * threads), parts = parts_of(count, part);
    /* A task that begins after all parts are claimed finds nothing but this. */
    const auto progress = std::make_shared<Progress>();
    const int calls = core();
    const bool alone = running++ == 0; // else other cores are busy
    const auto take = [=, work = &work](i64 thread) {
      if (thread > 0 && alone && progress->claimed < parts) leave(calls);
      for (i64 claimed; (claimed = progress->claimed++) < parts; progress->done++) {
        for (i64 item = claimed * part; item < least(claimed * part + part, count); item++)
          (*work)(item, thread);
        fence();
      }
    };
    for (i64 thread = 1; thread < least(threads, parts); thread++)
      pool.Schedule([=] { take(thread); });
    take(0);
    while (progress->done < parts) std::this_thread::yield();
    running--;
  }
};

static ffi::Error answer(int failed) {
  if (!failed) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for partial sums");
}

/* Arguments: what is multiplied, as many weights, then terms. */
static ffi::Error linear_sum(ffi::ThreadPool threads, ffi::RemainingArgs args, Made y,
                             Numbers shape, Numbers depth, Numbers lines, Numbers line,
                             Numbers x_step, Numbers term_step) {
  std::vector<const float *> from;
  for (size_t i = 0; i < args.size(); i++) {
    const auto found = args.get<Floats>(i);
    if (found.has_error()) return found.error();
    from.push_back(found->typed_data());
  }
  if (y->element_count() == 0) return answer(0);
  const i64 axes = (i64)shape.size(), products = (i64)depth.size();
  const i64 terms = (i64)from.size() - 2 * products;
  const float *const *const x = from.data();
  return answer(sum(Pool(threads), axes, shape.begin(), y->dimensions().back(), products, x,
                    x_step.begin(), depth.begin(), lines.begin(), line.begin(), x + products,
                    terms, x + 2 * products, term_step.begin(), y->typed_data(),
                    y->size_bytes() >= STREAMED));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(symcompile_linear_sum, linear_sum,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<Floats>()
                                  .Attr<Numbers>("shape")
                                  .Attr<Numbers>("depth")
                                  .Attr<Numbers>("lines")
                                  .Attr<Numbers>("line")
                                  .Attr<Numbers>("x_step")
                                  .Attr<Numbers>("term_step"));

/* shape: that of x as it is read, and the width of what lies side by side. */
static ffi::Error two_sums(ffi::ThreadPool threads, Floats x, Made over_rows, Made over_count,
                           Numbers shape, Numbers x_step, float row_scale, float count_scale) {
  const i64 axes = (i64)x_step.size();
  return answer(sums(Pool(threads), axes, shape.begin(), x.typed_data(), x_step.begin(),
                     shape[axes], over_rows->typed_data(), row_scale, over_count->typed_data(),
                     count_scale));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(symcompile_sums, two_sums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<Numbers>("shape")
                                  .Attr<Numbers>("x_step")
                                  .Attr<float>("row_scale")
                                  .Attr<float>("count_scale"));

static ffi::Error outer_product(ffi::ThreadPool threads, Floats x, Floats g, Made weight,
                                Numbers shape, Numbers x_step, Numbers g_step) {
  const auto sides = weight->dimensions();
  return answer(outer(Pool(threads), (i64)shape.size(), shape.begin(), x.typed_data(),
                      x_step.begin(), sides[0], g.typed_data(), g_step.begin(), sides[1],
                      weight->typed_data()));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(symcompile_outer, outer_product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Attr<Numbers>("shape")
                                  .Attr<Numbers>("x_step")
                                  .Attr<Numbers>("g_step"));

/* shape: batch, rows, count, inner. */
static ffi::Error back_from(ffi::ThreadPool threads, Floats g, Floats x, Floats transposed,
                            Floats first, Floats second, Made to_x, Made to_weight,
                            Numbers shape) {
  const auto sides = to_weight->dimensions();
  return answer(back(Pool(threads), g.typed_data(), x.typed_data(), shape[0], shape[1], shape[2],
                     shape[3], sides[1], sides[0], transposed.typed_data(), first.typed_data(),
                     second.typed_data(), to_x->typed_data(), to_weight->typed_data(), nullptr,
                     nullptr, to_x->size_bytes() >= STREAMED));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(symcompile_back_from, back_from,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<Numbers>("shape"));

/* shape: batch, rows, count, inner. */
static ffi::Error all_back(ffi::ThreadPool threads, Floats g, Floats x, Floats transposed,
                           Made to_x, Made to_weight, Made over_rows, Made over_count,
                           Numbers shape) {
  const auto sides = to_weight->dimensions();
  return answer(back(Pool(threads), g.typed_data(), x.typed_data(), shape[0], shape[1], shape[2],
                     shape[3], sides[1], sides[0], transposed.typed_data(), nullptr, nullptr,
                     to_x->typed_data(), to_weight->typed_data(), over_rows->typed_data(),
                     over_count->typed_data(), to_x->size_bytes() >= STREAMED));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(symcompile_back, all_back,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<Numbers>("shape"));

/* Arguments or results that are parts of one matrix. */
struct Given {
  std::vector<float *> at;

  ffi::Error take(const ffi::RemainingArgs &args, size_t from, size_t to) {
    for (size_t i = from; i < to; i++) {
      const auto found = args.get<Floats>(i);
      if (found.has_error()) return found.error();
      at.push_back(found->typed_data());
    }
    return ffi::Error::Success();
  }

  Parts parts(Numbers step, Numbers width, Numbers lines, Numbers line) const {
    return {(i64)at.size(), at.data(), step.begin(), width.begin(), lines.begin(), line.begin()};
  }
};

/* Arguments: parts of what is multiplied, then the weight. */
static ffi::Error mixed(ffi::ThreadPool threads, ffi::RemainingArgs args, ffi::RemainingRets rets,
                        Numbers shape, Numbers x_step, Numbers x_width, Numbers x_lines,
                        Numbers x_line, Numbers transposed, Numbers y_step, Numbers y_width,
                        Numbers y_lines, Numbers y_line) {
  Given x, weight, y;
  if (auto error = x.take(args, 0, args.size() - 1); error.failure()) return error;
  if (auto error = weight.take(args, args.size() - 1, args.size()); error.failure()) return error;
  for (size_t i = 0; i < rets.size(); i++) {
    auto found = rets.get<Floats>(i);
    if (found.has_error()) return found.error();
    y.at.push_back((*found)->typed_data());
  }
  return answer(product(Pool(threads), (i64)shape.size(), shape.begin(),
                        x.parts(x_step, x_width, x_lines, x_line), weight.at[0],
                        transposed[0] != 0, y.parts(y_step, y_width, y_lines, y_line)));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(symcompile_mixed, mixed,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<Numbers>("shape")
                                  .Attr<Numbers>("x_step")
                                  .Attr<Numbers>("x_width")
                                  .Attr<Numbers>("x_lines")
                                  .Attr<Numbers>("x_line")
                                  .Attr<Numbers>("transposed")
                                  .Attr<Numbers>("y_step")
                                  .Attr<Numbers>("y_width")
                                  .Attr<Numbers>("y_lines")
                                  .Attr<Numbers>("y_line"));

/* Arguments: parts of what was multiplied, as many as there are widths, then parts of the gradient. */
static ffi::Error mixed_back(ffi::ThreadPool threads, ffi::RemainingArgs args, Made weight,
                             Numbers shape, Numbers x_step, Numbers x_width, Numbers x_lines,
                             Numbers x_line, Numbers g_step, Numbers g_width, Numbers g_lines,
                             Numbers g_line) {
  Given x, g;
  if (auto error = x.take(args, 0, x_width.size()); error.failure()) return error;
  if (auto error = g.take(args, x_width.size(), args.size()); error.failure()) return error;
  return answer(product_back(Pool(threads), (i64)shape.size(), shape.begin(),
                             x.parts(x_step, x_width, x_lines, x_line),
                             g.parts(g_step, g_width, g_lines, g_line), weight->typed_data()));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(symcompile_mixed_back, mixed_back,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<Floats>()
                                  .Attr<Numbers>("shape")
                                  .Attr<Numbers>("x_step")
                                  .Attr<Numbers>("x_width")
                                  .Attr<Numbers>("x_lines")
                                  .Attr<Numbers>("x_line")
                                  .Attr<Numbers>("g_step")
                                  .Attr<Numbers>("g_width")
                                  .Attr<Numbers>("g_lines")
                                  .Attr<Numbers>("g_line"));
