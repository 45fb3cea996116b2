package protocol

import (
	"regexp"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
)

// Validate implements Message.
func (c *Capacity) Validate(now time.Time) error {
	if err := first(
		expires(c.GetIssuedMs(), c.GetExpiresMs(), MaxCapLife, now),
		asset(c.GetAsset()),
		text("region", c.GetRegion(), 32),
		text("reachability", c.GetReachability(), 16),
		text("agent", c.GetAgent(), 64),
		addresses(c.GetAddrs()),
		c.GetPortability().check(),
	); err != nil {
		return err
	}
	if len(c.GetGpus()) > maxGPUs || len(c.GetClasses()) > maxClasses {
		return bad("%d kinds of GPU and %d classes, over %d", len(c.GetGpus()), len(c.GetClasses()), maxGPUs)
	}
	for _, class := range c.GetClasses() {
		if err := CheckClass(class); err != nil {
			return err
		}
	}
	for _, g := range c.GetGpus() {
		if g.GetFree() > g.GetCount() || g.GetCount() > 1024 {
			return bad("%d of %d GPUs free", g.GetFree(), g.GetCount())
		}
		if err := first(needed("GPU model", g.GetModel(), 32), text("driver", g.GetDriver(), 32), text("cuda", g.GetCuda(), 16), text("compute capability", g.GetCompute(), 16)); err != nil {
			return err
		}
	}
	if c.GetCpuMillisFree() > c.GetCpuMillis() || c.GetMemoryBytesFree() > c.GetMemoryBytes() || c.GetDiskBytesFree() > c.GetDiskBytes() {
		return bad("more is free than there is")
	}
	return nil
}

// HasFake reports whether a record lists fake GPUs, which belong on networks
// for development and tests only.
func (c *Capacity) HasFake() bool {
	for _, g := range c.GetGpus() {
		if g.GetFake() {
			return true
		}
	}
	return false
}

// Validate implements Message.
func (*CapacityQuery) Validate(time.Time) error { return nil }

// Validate implements Message.
func (o *Offer) Validate(now time.Time) error {
	if err := first(
		nonce(o.GetNonce()),
		expires(o.GetIssuedMs(), o.GetExpiresMs(), MaxOfferLife, now),
		resources(o.GetResources()),
		image(o.GetImage()),
		asset(o.GetAsset()),
		spanMs("fetch limit", o.GetFetchLimitMs()),
		spanMs("run limit", o.GetRunLimitMs()),
		fileBytes("outputs", o.GetOutputBytes()),
		fileBytes("log", o.GetLogBytes()),
		openFiles(o.GetOpenFiles()),
		netPolicy(o.GetNet(), o.GetNetBytes()),
		addresses(o.GetAddrs()),
		o.GetPortability().check(),
	); err != nil {
		return err
	}
	if o.GetBidsUntilMs() < o.GetIssuedMs() || o.GetBidsUntilMs() > o.GetExpiresMs() {
		return bad("bids are wanted at a time outside the offer's life")
	}
	if o.GetTasks() == 0 || o.GetTasks() > maxTasks {
		return bad("%d tasks, want 1 to %d", o.GetTasks(), maxTasks)
	}
	if len(o.GetClasses()) == 0 || len(o.GetClasses()) > maxClasses {
		return bad("%d resource classes, want 1 to %d", len(o.GetClasses()), maxClasses)
	}
	for _, class := range o.GetClasses() {
		if err := CheckClass(class); err != nil {
			return err
		}
	}
	return nil
}

// Validate implements Message.
func (b *Bid) Validate(now time.Time) error {
	if err := first(
		digest("offer id", b.GetOfferId()),
		expires(b.GetIssuedMs(), b.GetValidUntilMs(), MaxOfferLife, now),
		asset(b.GetAsset()),
		spanMs("time to start", b.GetStartInMs()),
	); err != nil {
		return err
	}
	if b.GetSlots() == 0 || b.GetSlots() > maxTasks {
		return bad("%d slots, want 1 to %d", b.GetSlots(), maxTasks)
	}
	return nil
}

// Validate implements Message.
func (d *Decline) Validate(now time.Time) error {
	if _, ok := Reason_name[int32(d.GetReason())]; !ok || d.GetReason() == Reason_REASON_UNSPECIFIED {
		return bad("reason %d is not known", d.GetReason())
	}
	return first(digest("offer id", d.GetOfferId()), issued(d.GetIssuedMs(), now))
}

// Validate implements Message.
func (a *Answer) Validate(time.Time) error {
	if (len(a.GetBid()) == 0) == (len(a.GetDecline()) == 0) {
		return bad("an answer holds either a bid or a decline")
	}
	if len(a.GetBid()) > MaxSmall || len(a.GetDecline()) > MaxSmall {
		return bad("the answer's envelope is over %d bytes", MaxSmall)
	}
	return nil
}

// Validate implements Message.
func (l *Lease) Validate(now time.Time) error {
	if err := first(
		nonce(l.GetNonce()),
		digest("offer id", l.GetOfferId()),
		digest("bid id", l.GetBidId()),
		peerID("provider", l.GetProvider()),
		needed("job", l.GetJob(), 64),
		expires(l.GetIssuedMs(), l.GetAcceptByMs(), MaxOfferLife, now),
		resources(l.GetResources()),
		image(l.GetImage()),
		l.GetSpec().check(),
		l.GetLimits().check(),
		netPolicy(l.GetNet(), l.GetLimits().GetNetBytes()),
		asset(l.GetAsset()),
		amount("budget", l.GetBudget()),
		addresses(l.GetAddrs()),
	); err != nil {
		return err
	}
	if len(l.GetSpec().GetOutputs()) > 0 && l.GetLimits().GetOutputBytes() == 0 {
		return bad("outputs without a limit")
	}
	if (len(l.GetSpec().GetRestore()) > 0) != (l.GetRestoreBytes() > 0) || l.GetRestoreBytes() > maxCheckpoint {
		return bad("a checkpoint of %d bytes to go on from", l.GetRestoreBytes())
	}
	if l.GetBudget().GetAsset() != l.GetAsset() {
		return bad("the budget is in %.20q, the price in %.20q", l.GetBudget().GetAsset(), l.GetAsset())
	}
	if l.GetHeartbeatMs() < MinHeartbeat || l.GetHeartbeatMs() > MaxHeartbeat {
		return bad("a heartbeat every %d ms is not between %d and %d", l.GetHeartbeatMs(), MinHeartbeat, MaxHeartbeat)
	}
	if len(l.GetHolders()) > maxHolders {
		return bad("%d holders, over %d", len(l.GetHolders()), maxHolders)
	}
	for _, h := range l.GetHolders() {
		if err := peerID("holder", h); err != nil {
			return err
		}
	}
	return nil
}

func (t *Task) check() error {
	if t == nil {
		return bad("task is missing")
	}
	if len(t.GetCommand())+len(t.GetEntrypoint()) > maxCommand || len(t.GetEnv()) > maxEnv ||
		len(t.GetInputs()) > maxInputs || len(t.GetOutputs()) > maxOutputs {
		return bad("task has too many arguments (%d), variables (%d), inputs (%d) or outputs (%d)",
			len(t.GetCommand())+len(t.GetEntrypoint()), len(t.GetEnv()), len(t.GetInputs()), len(t.GetOutputs()))
	}
	for _, a := range append(append([]string{}, t.GetEntrypoint()...), t.GetCommand()...) {
		if err := text("argument", a, maxArg); err != nil {
			return err
		}
	}
	for _, e := range t.GetEnv() {
		if err := first(needed("variable name", e.GetName(), 256), text("variable", e.GetValue(), maxArg)); err != nil {
			return err
		}
	}
	for _, in := range t.GetInputs() {
		if err := first(contentID("input", in.GetRoot()), absPath("input path", in.GetTo())); err != nil {
			return err
		}
	}
	for _, out := range t.GetOutputs() {
		if err := absPath("output path", out); err != nil {
			return err
		}
	}
	return first(t.checkCaches(), t.checkPrivate(), t.checkSecrets(), t.checkCheckpoint(), t.GetReady().check(), t.checkIdle(), text("workdir", t.GetWorkdir(), maxPath))
}

func (t *Task) checkCaches() error {
	if len(t.GetCaches()) > maxCaches {
		return bad("task has too many caches (%d)", len(t.GetCaches()))
	}
	for _, c := range t.GetCaches() {
		if err := first(CacheKey(c.GetKey()), absPath("cache path", c.GetTo())); err != nil {
			return err
		}
	}
	last := -1
	for _, i := range t.GetStreams() {
		if int(i) >= len(t.GetOutputs()) || int(i) <= last {
			return bad("streamed output %d is none of %d, or out of order", i, len(t.GetOutputs()))
		}
		last = int(i)
	}
	return nil
}

// CacheKey says what is wrong with the name of a cache: letters, digits and
// "._-" but no leading dot, or "cid:" and a CID.
func CacheKey(k string) error {
	if id, ok := strings.CutPrefix(k, "cid:"); ok {
		c, err := cid.Decode(id)
		if err != nil {
			return bad("cache key %.80q: %v", k, err)
		}
		return contentID("cache key", c.Bytes())
	}
	if !cacheKeyForm.MatchString(k) {
		return bad("cache key %.80q: want up to 64 letters, digits and ._- without a leading dot, or cid: and a CID", k)
	}
	return nil
}

var cacheKeyForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$`)

func (l *Limits) check() error {
	switch {
	case l == nil:
		return bad("limits are missing")
	case l.GetFetchMs() <= 0 || l.GetRunMs() <= 0 || l.GetSaveMs() <= 0:
		return bad("a limit of time is not above 0")
	case l.GetPids() == 0 || l.GetPids() > 1<<22:
		return bad("%d processes, want 1 to %d", l.GetPids(), 1<<22)
	case l.GetSaveMs() > maxSaveMs:
		return bad("save limit of %d ms is over %d", l.GetSaveMs(), maxSaveMs)
	case l.GetLogBytes() == 0:
		return bad("a log without a limit")
	}
	return first(
		spanMs("fetch limit", l.GetFetchMs()), spanMs("run limit", l.GetRunMs()),
		fileBytes("outputs", l.GetOutputBytes()), fileBytes("log", l.GetLogBytes()),
		openFiles(l.GetOpenFiles()),
	)
}

// Open files of one process: fewer than the least start no program.
const (
	MinOpenFiles = 16
	MaxOpenFiles = 1 << 20
)

func openFiles(n uint32) error {
	if n != 0 && (n < MinOpenFiles || n > MaxOpenFiles) {
		return bad("%d open files, want %d to %d", n, MinOpenFiles, MaxOpenFiles)
	}
	return nil
}

// Validate implements Message.
func (d *Decision) Validate(now time.Time) error {
	return first(digest("lease id", d.GetLeaseId()), issued(d.GetAtMs(), now), text("detail", d.GetDetail(), maxDetail))
}

// Validate implements Message.
func (h *Heartbeat) Validate(now time.Time) error {
	if h.GetPhase() < Phase_PHASE_FETCHING || h.GetPhase() > Phase_PHASE_STARTING {
		return bad("phase %d is not known", h.GetPhase())
	}
	if len(h.GetOutputs()) > 0 {
		if err := contentID("outputs", h.GetOutputs()); err != nil {
			return err
		}
	}
	return first(
		digest("lease id", h.GetLeaseId()), issued(h.GetAtMs(), now), spanMs("usage", h.GetUsageMs()),
		h.GetCheckpoint().check(now), text("why there is no checkpoint", h.GetCheckpointFailed(), maxDetail), text("the trouble", h.GetTrouble(), maxDetail),
	)
}

// Validate implements Message.
func (v *Verdict) Validate(time.Time) error {
	if len(v.GetCancel())+len(v.GetReceipt()) > MaxSmall {
		return bad("the verdict's envelopes are over %d bytes", MaxSmall)
	}
	if len(v.GetCheckpoint()) > 0 {
		if err := contentID("checkpoint", v.GetCheckpoint()); err != nil {
			return err
		}
	}
	return digest("lease id", v.GetLeaseId())
}

// Validate implements Message.
func (c *LogChunk) Validate(time.Time) error {
	if len(c.GetRecords()) > maxRecords {
		return bad("%d log records, over %d", len(c.GetRecords()), maxRecords)
	}
	for i, r := range c.GetRecords() {
		if r.GetSeq() != c.GetFirstSeq()+uint64(i) {
			return bad("log record %d has number %d, want %d", i, r.GetSeq(), c.GetFirstSeq()+uint64(i))
		}
		if r.GetStream() < 1 || r.GetStream() > 3 {
			return bad("log stream %d is not known", r.GetStream())
		}
	}
	return digest("lease id", c.GetLeaseId())
}

// Validate implements Message.
func (r *Result) Validate(now time.Time) error {
	if r.GetOutcome() < Outcome_OUTCOME_DONE || r.GetOutcome() > Outcome_OUTCOME_CANCELLED {
		return bad("outcome %d is not known", r.GetOutcome())
	}
	if len(r.GetOutputs()) > 0 {
		if err := contentID("outputs", r.GetOutputs()); err != nil {
			return err
		}
	}
	if e := r.GetExceeded(); e != nil {
		if err := needed("exceeded limit", e.GetLimit(), 32); err != nil {
			return err
		}
	}
	return first(
		digest("lease id", r.GetLeaseId()),
		issued(r.GetEndedMs(), now),
		spanMs("usage", r.GetUsageMs()),
		spanMs("time to fetch", r.GetFetchMs()), spanMs("time to prepare", r.GetPrepareMs()), spanMs("time to save", r.GetSaveMs()),
		amount("charge", r.GetCharge()),
		text("reason", r.GetReason(), maxDetail),
		needed("exit source", r.GetExitSource(), 32),
		fileBytes("bytes sent", r.GetNetUpBytes()), fileBytes("bytes received", r.GetNetDownBytes()),
	)
}

// Validate implements Message.
func (r *Receipt) Validate(now time.Time) error {
	if len(r.GetResultId()) > 0 {
		if err := digest("result id", r.GetResultId()); err != nil {
			return err
		}
	}
	return first(
		digest("lease id", r.GetLeaseId()),
		issued(r.GetAtMs(), now),
		spanMs("usage", r.GetUsageMs()),
		amount("charge", r.GetCharge()),
		needed("end", r.GetEnd(), 16),
	)
}

// Validate implements Message.
func (c *Cancel) Validate(now time.Time) error {
	return first(digest("lease id", c.GetLeaseId()), issued(c.GetAtMs(), now), spanMs("grace", c.GetGraceMs()), text("reason", c.GetReason(), maxDetail))
}

// Validate implements Message.
func (q *LeaseQuery) Validate(time.Time) error { return digest("lease id", q.GetLeaseId()) }

// Validate implements Message.
func (s *LeaseStatus) Validate(time.Time) error { return digest("lease id", s.GetLeaseId()) }

// Validate implements Message.
func (e *ExecRequest) Validate(now time.Time) error {
	if len(e.GetCommand()) == 0 || len(e.GetCommand()) > maxCommand {
		return bad("a command of %d words, want 1 to %d", len(e.GetCommand()), maxCommand)
	}
	for _, a := range e.GetCommand() {
		if err := text("argument", a, maxArg); err != nil {
			return err
		}
	}
	return first(digest("lease id", e.GetLeaseId()), issued(e.GetAtMs(), now))
}

// Validate implements Message.
func (p *PortRequest) Validate(now time.Time) error {
	if p.GetPort() == 0 || p.GetPort() > 1<<16-1 {
		return bad("port %d, want 1 to %d", p.GetPort(), 1<<16-1)
	}
	return first(digest("lease id", p.GetLeaseId()), issued(p.GetAtMs(), now))
}

// Validate implements Message.
func (a *Ack) Validate(time.Time) error { return digest("message id", a.GetOf()) }

// Validate implements Message.
func (p *Ping) Validate(time.Time) error { return nonce(p.GetNonce()) }
