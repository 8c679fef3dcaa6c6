//go:build linux

package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/taskerhq/tasker/internal/worker"
)

const (
	serverCount = 4
	workerCount = 8

	startPatience      = 60 * time.Second // Postgres may be recovering
	stopServerPatience = 30 * time.Second
	stopWorkerPatience = 40 * time.Second
)

// namespaces have workers of their own.
var namespaces = []string{"chaos-a", "chaos-b"}

// fleet is all processes but Postgres, and the connections to the servers.
type fleet struct {
	dir, binary, databaseURL string
	servers                  [serverCount]*slot
	workers                  [workerCount]*slot
	conns                    [serverCount]*grpc.ClientConn
	addresses                []string // of the servers
}

// slot is the place of one process, which has several lives. Whoever does something to the process holds mu meanwhile.
type slot struct {
	mu      sync.Mutex
	number  int
	life    int
	process atomic.Pointer[process]
	address string // of a server: the same in all lives
}

// build makes the program that is tested, the way the test itself was built.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "tasker")
	args := append(append([]string{"build"}, buildFlags...), "-o", binary, "github.com/taskerhq/tasker/cmd/tasker")
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("building the server: %v\n%s", err, out)
	}
	return binary
}

// startFleet starts all processes. They end with the test.
func startFleet(t *testing.T, databaseURL string) *fleet {
	t.Helper()
	f := &fleet{dir: t.TempDir(), binary: build(t), databaseURL: databaseURL}
	t.Cleanup(f.close)
	var starts sync.WaitGroup
	errs := make([]error, serverCount)
	for i := range f.servers {
		f.servers[i] = &slot{number: i + 1, address: "127.0.0.1:0"}
		starts.Go(func() { errs[i] = f.startServer(f.servers[i]) })
	}
	starts.Wait()
	for i, s := range f.servers {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		f.addresses = append(f.addresses, s.address)
		var err error
		if f.conns[i], err = worker.Dial(s.address, insecure.NewCredentials()); err != nil {
			t.Fatal(err)
		}
	}
	workerErrs := make([]error, workerCount)
	for i := range f.workers {
		f.workers[i] = &slot{number: i + 1}
		starts.Go(func() { workerErrs[i] = f.startWorker(f.workers[i]) })
	}
	starts.Wait()
	if err := errors.Join(workerErrs...); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fleet) close() {
	for _, s := range f.slots() {
		if p := s.process.Load(); p != nil {
			p.kill()
		}
	}
	for _, conn := range f.conns {
		if conn != nil {
			_ = conn.Close() // It was the server's to lose.
		}
	}
}

func (f *fleet) slots() (all []*slot) {
	for _, s := range append(f.servers[:], f.workers[:]...) {
		if s != nil {
			all = append(all, s)
		}
	}
	return all
}

// startServer begins another life of a server, as a supervisor would: a start that fails is tried again. It returns when
// the server is ready.
func (f *fleet) startServer(s *slot) error {
	var err error
	for deadline := time.Now().Add(startPatience); time.Now().Before(deadline); {
		var again bool
		if again, err = f.tryServer(s, time.Until(deadline)); !again {
			return err
		}
		time.Sleep(100 * time.Millisecond) // between two tries, not before a condition
	}
	return err
}

// tryServer starts a server. again says that its port was taken by somebody else's outgoing connection.
func (f *fleet) tryServer(s *slot, patience time.Duration) (again bool, err error) {
	s.life++
	env := []string{
		"TASKER_DATABASE_URL=" + f.databaseURL, "TASKER_SHUTDOWN_TIMEOUT=10s", "GORACE=halt_on_error=0",
		"TASKER_DATABASE_CONNECTIONS=4", "TASKER_DATABASE_HOT_CONNECTIONS=6",
	}
	name := fmt.Sprintf("server-%d.%d", s.number, s.life)
	p, line, err := serve(f.dir, name, patience, env, f.binary, "serve", "--listen", s.address)
	if err != nil {
		return strings.Contains(err.Error(), "address already in use"), err
	}
	address, ok := strings.CutPrefix(line, "serving on ")
	if !ok {
		p.kill()
		return false, fmt.Errorf("%s says %q first%s", name, line, p.lastWords(15))
	}
	s.address = address
	s.process.Store(p)
	return false, nil
}

// startWorker begins another life of a worker. A name whose bearer was killed is taken for a while, so it gets a new one. It returns
// when the worker heeds signals.
func (f *fleet) startWorker(s *slot) error {
	s.life++
	name := fmt.Sprintf("worker-%d.%d", s.number, s.life)
	settings := workerSettings{
		Addresses: strings.Join(f.addresses, ","), Namespace: namespaces[s.number%len(namespaces)], ID: name,
		Journal: filepath.Join(f.dir, name+".journal"), MaxInFlight: 8 * (1 + s.number%3),
	}
	if s.number%2 == 0 {
		settings.HandlerLimit = 4
	}
	body, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	p, _, err := serve(f.dir, name, startPatience, []string{workerEnv + "=" + string(body)}, os.Args[0])
	if err != nil {
		return err
	}
	s.process.Store(p)
	return nil
}

// diedAlone says which processes ended that were not to.
func (f *fleet) diedAlone() error {
	var errs []error
	for _, s := range f.slots() {
		errs = append(errs, s.process.Load().diedAlone())
	}
	return errors.Join(errs...)
}

// stop ends all processes in order, the workers first.
func (f *fleet) stop() error {
	var errs []error
	errs = append(errs, stopAll(f.workers[:], stopWorkerPatience)...)
	errs = append(errs, stopAll(f.servers[:], stopServerPatience)...)
	return errors.Join(errs...)
}

func stopAll(slots []*slot, patience time.Duration) []error {
	errs := make([]error, len(slots))
	var stops sync.WaitGroup
	for i, s := range slots {
		stops.Go(func() { errs[i] = s.process.Load().stop(patience) })
	}
	stops.Wait()
	return errs
}

// journals are the files that clients and workers have written.
func (f *fleet) journals(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(f.dir, "*.journal"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// anyServer is the connection to a server drawn at random, whether it lives or not.
func (f *fleet) anyServer(draw *rand.Rand) *grpc.ClientConn { return f.conns[draw.IntN(len(f.conns))] }

// sleep waits, and tells whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
