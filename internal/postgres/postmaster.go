//go:build unix

package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// stopPatience is how long the fast shutdown may take before it becomes the immediate one.
	stopPatience = 30 * time.Second
	// killPatience is how long the immediate shutdown may take before the postmaster is killed. It leaves the postmaster
	// the five seconds after which it kills backends that do not end.
	killPatience = 10 * time.Second

	// A postmaster that dies restartLimit times within restartWindow is given up.
	restartLimit  = 5
	restartWindow = time.Minute
	restartPause  = 200 * time.Millisecond
	// restartLockWait is how long a dead postmaster's backends may linger before a restart is given up.
	restartLockWait = 30 * time.Second

	logFileLimit = 16 << 20
)

// postmaster supervises the postgres process of an owned cluster.
type postmaster struct {
	binaries  Binaries
	as        account
	dir       clusterDir
	dataDir   string
	socketDir string
	settings  map[string]string
	logger    *slog.Logger
	// gone is told when there will be no more restarts.
	gone func(error)

	// ready is set once the server has accepted a connection: before that, a death is a failed start.
	ready atomic.Bool

	mu       sync.Mutex
	process  *os.Process // nil while none runs
	stopping bool
	stopped  chan struct{} // closed by the first stop
	finished chan struct{} // closed when the supervisor returns; nil before start
}

var errStopping = errors.New("stopping")

// start launches the postmaster, which inherits lock, and returns as soon as it runs.
func (p *postmaster) start(lock *os.File) error {
	p.stopped = make(chan struct{})
	p.finished = make(chan struct{})
	launched := make(chan error)
	go p.supervise(lock, launched)
	return <-launched
}

// supervise launches, waits, and launches again. It stays on one thread all the while: the kernel's parent-death signal
// comes when the thread that started the child ends, and Go ends threads as it likes unless a goroutine is locked to it.
func (p *postmaster) supervise(lock *os.File, launched chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.finished)

	run, err := p.launch(lock)
	launched <- err
	if err != nil {
		return
	}
	var deaths []time.Time
	for {
		death := p.await(run)
		if errors.Is(death, errStopping) {
			return
		}
		deaths = append(deaths, time.Now())
		often := len(deaths) >= restartLimit && time.Since(deaths[len(deaths)-restartLimit]) < restartWindow
		if often || !p.ready.Load() {
			p.gone(death)
			return
		}
		p.logger.Error("embedded PostgreSQL died; restarting it", "error", death)
		run, err = p.relaunch()
		if errors.Is(err, errStopping) {
			return
		}
		if err != nil {
			p.gone(errors.Join(death, err))
			return
		}
	}
}

// run is one life of the postmaster.
type run struct {
	cmd *exec.Cmd
	// logStart is where its words begin in the log file.
	logStart int64
}

// launch starts the postmaster. It inherits lock, so that the cluster stays locked while any backend of it lives.
func (p *postmaster) launch(lock *os.File) (run, error) {
	log, logStart, err := openLog(filepath.Join(p.dataDir, logFile))
	if err != nil {
		return run{}, err
	}
	defer func() { _ = log.Close() }()

	args := []string{"-D", p.dir.arg()}
	// Later ones win, but nothing may open the server to a network or move its socket.
	for _, name := range slices.Sorted(maps.Keys(p.settings)) {
		args = append(args, "-c", name+"="+p.settings[name])
	}
	args = append(args,
		"-c", "listen_addresses=", "-c", "port="+socketPort,
		"-c", "unix_socket_directories="+p.socketDir, "-c", "unix_socket_permissions=0700",
		"-c", "logging_collector=off", "-c", "log_destination=stderr",
	)
	cmd := exec.Command(filepath.Join(p.binaries.Dir, "postgres"), args...)
	cmd.Env = environment()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = p.dir.inherit(lock)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.as.credential(), Setpgid: true}
	setParentDeathSignal(cmd.SysProcAttr, syscall.SIGINT)

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return run{}, errStopping
	}
	if err := cmd.Start(); err != nil {
		return run{}, fmt.Errorf("starting PostgreSQL as user %s: %w", userName(p.as.uid), err)
	}
	p.process = cmd.Process
	return run{cmd: cmd, logStart: logStart}, nil
}

// await waits for the end of the run and says what it was: errStopping if it was asked for.
func (p *postmaster) await(run run) error {
	// Its error only repeats the state.
	_ = run.cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.process = nil
	if p.stopping {
		return errStopping
	}
	return fmt.Errorf("PostgreSQL ended by itself (%s); its last words:\n%s", run.cmd.ProcessState, p.logSince(run.logStart))
}

// relaunch starts the postmaster again after its death, once the backends that it left have gone.
func (p *postmaster) relaunch() (run, error) {
	select {
	case <-time.After(restartPause):
	case <-p.stopped:
		return run{}, errStopping
	}
	lock, err := waitLock(context.Background(), p.dataDir, clusterLock, func(waited time.Duration) error {
		select {
		case <-p.stopped:
			return errStopping
		default:
		}
		if waited > restartLockWait {
			return fmt.Errorf("backends of the dead PostgreSQL still run after %s", restartLockWait)
		}
		return nil
	})
	if err != nil {
		return run{}, err
	}
	defer func() { _ = lock.Close() }()
	if err := disownStalePID(filepath.Join(p.dataDir, clusterName), p.as); err != nil {
		return run{}, err
	}
	return p.launch(lock)
}

// stop ends the postmaster and the supervisor, politely first.
func (p *postmaster) stop(ctx context.Context) error {
	if p.finished == nil {
		return nil
	}
	p.mu.Lock()
	p.stopping = true
	close(p.stopped)
	p.mu.Unlock()

	if err := p.signal(syscall.SIGINT); err != nil {
		return err
	}
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	select {
	case <-p.finished:
		return nil
	case <-ctx.Done():
	case <-patience.C:
	}
	p.logger.Warn("embedded PostgreSQL is slow to stop; ending it at once, it will recover at the next start")
	if err := p.signal(syscall.SIGQUIT); err != nil {
		return err
	}
	kill := time.NewTimer(killPatience)
	defer kill.Stop()
	select {
	case <-p.finished:
		return nil
	case <-kill.C:
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.finished
	return errors.New("PostgreSQL did not stop and was killed; it will recover at the next start")
}

func (p *postmaster) signal(signal syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process == nil {
		return nil
	}
	if err := p.process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending PostgreSQL signal %s: %w", signal, err)
	}
	return nil
}

// openLog opens the log file at its end, after putting a long one aside.
func openLog(path string) (*os.File, int64, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > logFileLimit {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, 0, fmt.Errorf("putting the log aside: %w", err)
		}
	}
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("opening the log: %w", err)
	}
	info, err := log.Stat()
	if err != nil {
		_ = log.Close()
		return nil, 0, fmt.Errorf("opening the log: %w", err)
	}
	return log, info.Size(), nil
}

// logSince is what the postmaster wrote from the offset on, cut to its end.
func (p *postmaster) logSince(offset int64) string {
	const limit = 2000
	log, err := os.Open(filepath.Join(p.dataDir, logFile))
	if err != nil {
		return err.Error()
	}
	defer func() { _ = log.Close() }()
	if info, err := log.Stat(); err == nil && info.Size()-offset > limit {
		offset = info.Size() - limit
	}
	words, err := io.ReadAll(io.NewSectionReader(log, offset, limit))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(words))
}
