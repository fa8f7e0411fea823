// HTTP/1.1 load generator: POSTs bodies from files to one server and prints one line of JSON.
//
//   generator --port 8000 --path /detect --connections 16 --seconds 20 a.jpg b.jpg     (closed loop)
//   generator --port 8000 --path /detect --rate 50 --seconds 20 a.jpg b.jpg            (open loop)
//
// --path may be repeated: the paths are requested in turn, each with every body.
//
// Closed loop: each connection sends its next request after the response to the previous one.
// Open loop: requests are scheduled at Poisson-distributed times, independent of the server.
// Latency is measured from the scheduled time, so results are free of coordinated omission.
// Single-threaded.
//
// Why not an existing tool (checked: wrk 4.1, hey 0.1.4, h2load 1.52, autocannon 9, k6 1.1): wrk,
// hey and h2load have no open loop, or send one body only; autocannon merely corrects the latencies
// of a closed loop for coordinated omission. k6 has an open loop, but with uniform arrivals; it
// measures latency from the time of sending and drops requests when all virtual users are busy. At
// 100 requests/s it needs ten times the CPU time (0.09 of a core instead of 0.008), which it takes
// from the server under test on shared cores. wrk2, oha and vegeta are not available from PyPI,
// Debian or npm.

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace {

using Nanoseconds = std::int64_t;
constexpr double kNanosecondsPerSecond = 1e9;
constexpr Nanoseconds kNever = INT64_MAX;
// Abort if a server refuses every connection, which would otherwise cause a busy loop.
constexpr int kMaxFailuresInARow = 1000;

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "generator: %s\n", message.c_str());
  std::exit(2);
}

Nanoseconds now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
         (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

struct Options {
  int port = 0;
  std::vector<std::string> paths;
  std::vector<std::string> headers;
  std::vector<std::string> files;
  std::string records;           // file for one line per request; empty: none
  std::size_t connections = 0;   // 0: unlimited (open loop only)
  double seconds = 10, warmup_s = 0, rate = 0, timeout_s = 30;
  double disconnect_fraction = 0, disconnect_after_s = 0.05;
  std::uint64_t seed = 0;
};

struct Request {
  Nanoseconds scheduled;
  std::size_t body;
  bool is_measured, cancels;
  bool was_retried = false;
};

// Incremental parser of an HTTP response.
class Response {
 public:
  int status = 0;
  double retry_after_s = -1;
  bool keeps_connection = true, has_begun = false;

  // Parses the next bytes; true once the response is complete. Throws a message if it is not HTTP.
  bool feed(const char* bytes, std::size_t count) {
    has_begun = true;
    if (!headers_done_) {
      head_.append(bytes, count);
      const auto end = head_.find("\r\n\r\n");
      if (end == std::string::npos) return false;
      headers_done_ = true;
      const std::string rest = head_.substr(end + 4);
      parse_head(end);
      return feed_body(rest.data(), rest.size());
    }
    return feed_body(bytes, count);
  }

  // True if the response has no length and therefore ends with the connection.
  bool ends_with_connection() const { return headers_done_ && !chunked_ && length_ < 0; }

 private:
  std::string head_, tail_;
  bool headers_done_ = false, chunked_ = false;
  long long length_ = -1, received_ = 0;

  void parse_head(std::size_t end) {
    if (std::sscanf(head_.c_str(), "HTTP/1.%*d %d", &status) != 1) throw "not HTTP";
    for (std::size_t line = head_.find("\r\n"); line < end; line = head_.find("\r\n", line + 2)) {
      const char* text = head_.c_str() + line + 2;
      if (!strncasecmp(text, "content-length:", 15)) length_ = std::atoll(text + 15);
      if (!strncasecmp(text, "transfer-encoding: chunked", 26)) chunked_ = true;
      if (!strncasecmp(text, "connection: close", 17)) keeps_connection = false;
      if (!strncasecmp(text, "retry-after:", 12)) retry_after_s = std::atof(text + 12);
    }
  }

  bool feed_body(const char* bytes, std::size_t count) {
    received_ += count;
    if (chunked_) {
      // The last chunk is empty; its bytes may arrive in several parts, so the tail is kept.
      tail_.append(bytes, count);
      if (tail_.size() > 7) tail_.erase(0, tail_.size() - 7);
      return tail_.ends_with("\r\n0\r\n\r\n") || tail_ == "0\r\n\r\n";
    }
    return length_ >= 0 && received_ >= length_;
  }
};

struct Connection {
  int fd = -1;
  bool is_busy = false, waits_to_write = false, was_used = false;
  Request request{};
  std::size_t sent = 0;
  Response response;
  Nanoseconds expires = kNever;  // its entry in the set of deadlines
};

struct Outcome {
  std::vector<double> latencies_ms, retry_after_s;
};

std::string percentiles(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  // Nearest rank: the smallest value that at least this share of the values does not exceed.
  const auto at = [&](double share) {
    const auto rank = static_cast<std::size_t>(std::ceil(share * values.size()));
    return values[std::min(std::max<std::size_t>(rank, 1), values.size()) - 1];
  };
  double sum = 0;
  for (double value : values) sum += value;
  char text[256];
  std::snprintf(text, sizeof text,
                "{\"mean\":%.3f,\"p50\":%.3f,\"p90\":%.3f,\"p95\":%.3f,\"p99\":%.3f,"
                "\"p999\":%.3f,\"max\":%.3f}",
                sum / values.size(), at(.5), at(.9), at(.95), at(.99), at(.999), values.back());
  return text;
}

class Generator {
 public:
  explicit Generator(const Options& options)
      : options_(options), random_(options.seed), choices_(options.seed + 1) {
    std::string head = " HTTP/1.1\r\nHost: 127.0.0.1\r\n";
    for (const auto& header : options.headers) head += header + "\r\n";
    for (const auto& file : options.files) {
      std::ifstream stream(file, std::ios::binary);
      if (!stream) fail("cannot read " + file);
      const std::string body{std::istreambuf_iterator<char>(stream), {}};
      for (const auto& path : options.paths)
        messages_.push_back("POST " + path + head +
                            "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
    }
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    epoll_event event{EPOLLIN, {.ptr = nullptr}};
    if (epoll_ < 0 || timer_ < 0 || epoll_ctl(epoll_, EPOLL_CTL_ADD, timer_, &event))
      fail(std::strerror(errno));
  }

  void run() {
    start_ = now();
    measured_from_ = start_ + in_nanoseconds(options_.warmup_s);
    end_ = measured_from_ + in_nanoseconds(options_.seconds);
    next_arrival_ = options_.rate > 0 ? start_ + interval() : kNever;
    if (options_.rate <= 0)
      for (std::size_t index = 0; index < options_.connections; ++index) add_request(start_);
    cpu_at_start_ = cpu_seconds();
    while (true) {
      const Nanoseconds time = now();
      arrive(time);
      expire(time);
      dispatch(time);
      if (time >= end_ && !cpu_at_end_) cpu_at_end_ = cpu_seconds();
      // Requests in flight at the end of a closed loop do not count, but are awaited, so that the
      // next measurement finds the server idle.
      if (time >= end_ && busy_ == 0 && waiting_.empty()) break;
      set_timer();
      epoll_event events[256];
      const int count = epoll_wait(epoll_, events, 256, -1);
      if (count < 0 && errno != EINTR) fail(std::strerror(errno));
      for (int index = 0; index < count; ++index) handle(events[index]);
      closed_.clear();
    }
  }

  void print() const {
    std::size_t completed = 0;
    std::string statuses;
    for (const auto& [status, outcome] : outcomes_) {
      completed += outcome.latencies_ms.size();
      statuses += (statuses.empty() ? "\"" : ",\"") + std::to_string(status) + "\":{\"count\":" +
                  std::to_string(outcome.latencies_ms.size()) +
                  ",\"latency_ms\":" + percentiles(outcome.latencies_ms) + ",\"retry_after\":" +
                  (outcome.retry_after_s.empty() ? "null" : retry_after(outcome)) + "}";
    }
    std::printf(
        "{\"loop\":\"%s\",\"seconds\":%.6f,\"sent\":%zu,\"completed\":%zu,\"statuses\":{%s},"
        "\"timeouts\":%zu,\"failures\":%zu,\"disconnected\":%zu,\"retried\":%zu,"
        "\"max_connections\":%zu,\"max_dispatch_delay_ms\":%.3f,\"cpu_s\":%.6f,\"cpu_share\":%.6f}\n",
        options_.rate > 0 ? "open" : "closed", options_.seconds, sent_, completed, statuses.c_str(),
        timeouts_, failures_, disconnected_, retried_, max_connections_, max_dispatch_delay_ms_,
        cpu_at_end_ - cpu_at_start_,
        (cpu_at_end_ - cpu_at_start_) / (options_.warmup_s + options_.seconds));
    if (!options_.records.empty()) {
      std::ofstream stream(options_.records);
      stream << records_;
      if (!stream.flush()) fail("cannot write " + options_.records);
    }
  }

 private:
  Options options_;
  std::mt19937_64 random_, choices_;  // separate, so that cancellations do not change arrival times
  std::vector<std::string> messages_;
  int epoll_ = -1, timer_ = -1;
  Nanoseconds start_ = 0, measured_from_ = 0, end_ = 0, next_arrival_ = kNever;
  double cpu_at_start_ = 0, cpu_at_end_ = 0;
  std::deque<Request> waiting_;
  std::map<Connection*, std::unique_ptr<Connection>> connections_;
  std::vector<Connection*> idle_;  // LIFO, so that surplus connections stay idle
  std::vector<std::unique_ptr<Connection>> closed_;  // kept while events may refer to them
  std::set<std::pair<Nanoseconds, Connection*>> deadlines_;
  std::size_t busy_ = 0, next_body_ = 0, sent_ = 0, timeouts_ = 0, failures_ = 0;
  std::size_t disconnected_ = 0, retried_ = 0, max_connections_ = 0;
  int failures_in_a_row_ = 0;
  double max_dispatch_delay_ms_ = 0;
  std::map<int, Outcome> outcomes_;
  std::string records_;

  static Nanoseconds in_nanoseconds(double seconds) {
    return static_cast<Nanoseconds>(seconds * kNanosecondsPerSecond);
  }

  Nanoseconds interval() {
    const double uniform = (random_() >> 11) * 0x1p-53;  // [0, 1)
    return in_nanoseconds(-std::log1p(-uniform) / options_.rate);
  }

  void arrive(Nanoseconds time) {
    while (next_arrival_ <= time) {
      if (next_arrival_ >= measured_from_)
        max_dispatch_delay_ms_ = std::max(max_dispatch_delay_ms_, (time - next_arrival_) / 1e6);
      add_request(next_arrival_);
      next_arrival_ += interval();
      if (next_arrival_ >= end_) next_arrival_ = kNever;
    }
  }

  void add_request(Nanoseconds scheduled) {
    const bool cancels = (choices_() >> 11) * 0x1p-53 < options_.disconnect_fraction;
    // A closed loop counts the responses received during measurement, whenever they were sent.
    const bool is_measured = options_.rate <= 0 || scheduled >= measured_from_;
    waiting_.push_back({scheduled, next_body_++ % messages_.size(), is_measured, cancels});
    if (scheduled >= measured_from_) ++sent_;
  }

  void dispatch(Nanoseconds time) {
    while (!waiting_.empty()) {
      Connection* connection = nullptr;
      if (!idle_.empty()) {
        connection = idle_.back();
        idle_.pop_back();
      } else if (!options_.connections || connections_.size() < options_.connections) {
        connection = open_connection();
      } else {
        return;
      }
      const Request request = waiting_.front();
      waiting_.pop_front();
      if (connection == nullptr) {
        fail_request(request, time);
        continue;
      }
      start(*connection, request, time);
    }
  }

  Connection* open_connection() {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return nullptr;
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(options_.port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) &&
        errno != EINPROGRESS) {
      close(fd);
      return nullptr;
    }
    auto connection = std::make_unique<Connection>();
    connection->fd = fd;
    Connection* pointer = connection.get();
    epoll_event event{EPOLLIN | EPOLLRDHUP, {.ptr = pointer}};
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event)) fail(std::strerror(errno));
    connections_[pointer] = std::move(connection);
    max_connections_ = std::max(max_connections_, connections_.size());
    return pointer;
  }

  void start(Connection& connection, const Request& request, Nanoseconds time) {
    connection.request = request;
    connection.is_busy = true;
    connection.sent = 0;
    connection.response = Response();
    ++busy_;
    connection.expires = request.scheduled + in_nanoseconds(options_.timeout_s);
    if (request.cancels)
      connection.expires =
          std::min(connection.expires, time + in_nanoseconds(options_.disconnect_after_s));
    deadlines_.insert({connection.expires, &connection});
    write(connection);
  }

  void write(Connection& connection) {
    const std::string& message = messages_[connection.request.body];
    while (connection.sent < message.size()) {
      const ssize_t count = send(connection.fd, message.data() + connection.sent,
                                 message.size() - connection.sent, MSG_NOSIGNAL);
      if (count < 0) {
        if (errno == EINTR) continue;
        // EPIPE and similar errors are handled when the socket is read.
        if (errno == EAGAIN || errno == ENOTCONN) wait_to_write(connection, true);
        else wait_to_write(connection, false);
        return;
      }
      connection.sent += count;
    }
    wait_to_write(connection, false);
  }

  void wait_to_write(Connection& connection, bool enable) {
    if (connection.waits_to_write == enable) return;
    connection.waits_to_write = enable;
    epoll_event event{EPOLLIN | EPOLLRDHUP | (enable ? EPOLLOUT : 0u), {.ptr = &connection}};
    epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd, &event);
  }

  void handle(const epoll_event& event) {
    auto* connection = static_cast<Connection*>(event.data.ptr);
    if (connection == nullptr) {
      std::uint64_t expirations;
      [[maybe_unused]] const ssize_t count = read(timer_, &expirations, sizeof expirations);
      return;
    }
    if (!connections_.contains(connection)) return;  // closed by an earlier event of this batch
    if (event.events & EPOLLOUT) write(*connection);
    if (event.events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) receive(*connection);
  }

  void receive(Connection& connection) {
    static char buffer[1 << 16];
    while (true) {
      const ssize_t count = recv(connection.fd, buffer, sizeof buffer, 0);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EAGAIN) return;
      if (count <= 0 || !connection.is_busy) return end_of_connection(connection, count);
      try {
        if (connection.response.feed(buffer, count)) return complete(connection);
      } catch (const char*) {
        return end_of_connection(connection, -1);
      }
    }
  }

  void complete(Connection& connection) {
    const Nanoseconds time = now();
    const bool reusable = connection.response.keeps_connection &&
                          connection.sent == messages_[connection.request.body].size();
    record(connection.request, connection.response.status, connection.response.retry_after_s, time);
    failures_in_a_row_ = 0;
    release(connection);
    if (reusable) {
      connection.was_used = true;
      idle_.push_back(&connection);
    } else {
      close_connection(connection);
    }
    continue_loop(time);
  }

  void record(const Request& request, int status, double retry_after_s, Nanoseconds time) {
    if (!is_counted(request, time)) return;
    const double latency_ms = (time - request.scheduled) / 1e6;
    Outcome& outcome = outcomes_[status];
    outcome.latencies_ms.push_back(latency_ms);
    if (retry_after_s >= 0) outcome.retry_after_s.push_back(retry_after_s);
    write_record(request, status, latency_ms);
  }

  bool is_counted(const Request& request, Nanoseconds time) const {
    if (options_.rate > 0) return request.is_measured;
    return time >= measured_from_ && time < end_;
  }

  void write_record(const Request& request, int status, double latency_ms) {
    if (options_.records.empty()) return;
    char line[96];
    std::snprintf(line, sizeof line, "%.9f,%.6f,%d\n",
                  (request.scheduled - start_) / kNanosecondsPerSecond, latency_ms, status);
    records_ += line;
  }

  void end_of_connection(Connection& connection, ssize_t count) {
    if (!connection.is_busy) {  // the server closed an idle keep-alive connection
      idle_.erase(std::find(idle_.begin(), idle_.end(), &connection));
      return close_connection(connection);
    }
    if (count == 0 && connection.response.ends_with_connection()) {
      connection.response.keeps_connection = false;
      return complete(connection);
    }
    Request request = connection.request;
    // The server may close a keep-alive connection just as it is reused; like every HTTP client,
    // retry once on a new connection.
    const bool retry =
        connection.was_used && !connection.response.has_begun && !request.was_retried;
    release(connection);
    close_connection(connection);
    if (retry) {
      request.was_retried = true;
      ++retried_;
      waiting_.push_front(request);
    } else {
      fail_request(request, now());
    }
  }

  void fail_request(const Request& request, Nanoseconds time) {
    if (++failures_in_a_row_ > kMaxFailuresInARow)
      fail("the server on port " + std::to_string(options_.port) +
           " did not respond to " + std::to_string(kMaxFailuresInARow) + " requests in a row");
    if (is_counted(request, time)) {
      ++failures_;
      write_record(request, 0, (time - request.scheduled) / 1e6);
    }
    continue_loop(time);
  }

  void expire(Nanoseconds time) {
    while (!deadlines_.empty() && deadlines_.begin()->first <= time) {
      Connection& connection = *deadlines_.begin()->second;
      const Request request = connection.request;
      release(connection);
      close_connection(connection);
      cancel(request, time);
    }
    const Nanoseconds timeout = in_nanoseconds(options_.timeout_s);
    while (!waiting_.empty() && waiting_.front().scheduled + timeout <= time) {
      const Request request = waiting_.front();
      waiting_.pop_front();
      cancel(request, time);
    }
    closed_.clear();
  }

  void cancel(const Request& request, Nanoseconds time) {
    const bool intended =
        request.cancels && time < request.scheduled + in_nanoseconds(options_.timeout_s);
    if (is_counted(request, time)) {
      ++(intended ? disconnected_ : timeouts_);
      write_record(request, intended ? -2 : -1, (time - request.scheduled) / 1e6);
    }
    continue_loop(time);
  }

  void continue_loop(Nanoseconds time) {
    if (options_.rate <= 0 && time < end_) add_request(time);
  }

  void release(Connection& connection) {
    deadlines_.erase({connection.expires, &connection});
    connection.is_busy = false;
    --busy_;
  }

  void close_connection(Connection& connection) {
    close(connection.fd);
    const auto found = connections_.find(&connection);
    closed_.push_back(std::move(found->second));
    connections_.erase(found);
  }

  void set_timer() {
    Nanoseconds next = std::min(next_arrival_, end_ > now() ? end_ : kNever);
    if (!deadlines_.empty()) next = std::min(next, deadlines_.begin()->first);
    if (!waiting_.empty())
      next = std::min(next, waiting_.front().scheduled + in_nanoseconds(options_.timeout_s));
    if (next == kNever) next = now() + in_nanoseconds(0.1);
    itimerspec setting{};
    setting.it_value = {next / 1000000000LL, next % 1000000000LL};
    timerfd_settime(timer_, TFD_TIMER_ABSTIME, &setting, nullptr);
  }

  static std::string retry_after(const Outcome& outcome) {
    const auto [min, max] =
        std::minmax_element(outcome.retry_after_s.begin(), outcome.retry_after_s.end());
    char text[96];
    std::snprintf(text, sizeof text, "{\"count\":%zu,\"min_s\":%g,\"max_s\":%g}",
                  outcome.retry_after_s.size(), *min, *max);
    return text;
  }
};

double number(const std::string& name, const std::string& text, double min) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (end == text.c_str() || *end || !(value >= min) || !std::isfinite(value))
    fail(name + " is " + text + "; it must be a number of at least " + std::to_string(min));
  return value;
}

Options parse(int count, char** values) {
  Options options;
  for (int index = 1; index < count; ++index) {
    const std::string name = values[index];
    if (!name.starts_with("--")) {
      options.files.push_back(name);
      continue;
    }
    if (++index == count) fail(name + " requires a value");
    const std::string value = values[index];
    if (name == "--port") options.port = static_cast<int>(number(name, value, 1));
    else if (name == "--path") options.paths.push_back(value);
    else if (name == "--header") options.headers.push_back(value);
    else if (name == "--connections") options.connections = number(name, value, 0);
    else if (name == "--seconds") options.seconds = number(name, value, 0.001);
    else if (name == "--warmup") options.warmup_s = number(name, value, 0);
    else if (name == "--rate") options.rate = number(name, value, 0.001);
    else if (name == "--seed") options.seed = number(name, value, 0);
    else if (name == "--timeout") options.timeout_s = number(name, value, 0.001);
    else if (name == "--disconnect-fraction") options.disconnect_fraction = number(name, value, 0);
    else if (name == "--disconnect-after") options.disconnect_after_s = number(name, value, 0);
    else if (name == "--records") options.records = value;
    else fail("unknown option " + name);
  }
  if (!options.port || options.paths.empty() || options.files.empty())
    fail("--port, --path and at least one file are required");
  if (options.rate <= 0 && !options.connections)
    fail("a closed loop requires --connections, an open loop --rate");
  return options;
}

}  // namespace

int main(int count, char** values) {
  std::signal(SIGPIPE, SIG_IGN);
  Generator generator(parse(count, values));
  generator.run();
  generator.print();
}
