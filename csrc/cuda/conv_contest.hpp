// Timing convolution algorithms against each other.
#pragma once

#include "cuda/conv.hpp"

namespace dlfs {

class ConvContest {
 public:
  // tensors: full of noise, of `bytes` in all. budget_ms: of the whole contest; more makes each algorithm run longer.
  ConvContest(Stream& stream, const ConvTensors& tensors, int64_t bytes, double budget_ms);
  ConvContest(const ConvContest&) = delete;
  ConvContest& operator=(const ConvContest&) = delete;

  // Times an algorithm; nothing where it is null, was there before, or cannot run here.
  void consider(const std::shared_ptr<const ConvAlgorithm>& algorithm);

  // The fastest. Those that are nearly as fast as it run again, in turns, first. Null where there is none.
  std::shared_ptr<const ConvAlgorithm> winner();

 private:
  struct Entry {
    std::shared_ptr<const ConvAlgorithm> algorithm;
    double ms;
  };

  // How often an algorithm runs that takes so long.
  int runs_for(double ms) const;
  void* workspace(int64_t bytes);
  // Milliseconds of each of so many runs, none of which finds its operands in the cache.
  std::vector<double> measure(const ConvAlgorithm& algorithm, int runs);

  Stream& stream_;
  const ConvTensors tensors_;
  const double measured_ms_;
  const int final_rounds_;
  DeviceBuffer workspace_;
  DeviceBuffer flush_;  // overwritten before each run; empty where the tensors themselves fill the cache
  std::vector<std::shared_ptr<CUevent_st>> events_;
  std::vector<Entry> entries_;
  std::vector<std::string> seen_;
};

}  // namespace dlfs
