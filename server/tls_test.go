package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/server"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), "ca.pem"), pool: x509.NewCertPool()}
	a.key = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	// As a renewal does it: a new file in the place of the old one.
	if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// issue writes a certificate for the loopback with its key.
func (a *authority) issue(t *testing.T, serial int64, cert, key string) {
	t.Helper()
	k := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "leaf"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, key, "EC PRIVATE KEY", private)
	writePEM(t, cert, "CERTIFICATE", der)
}

func TestTLS(t *testing.T) {
	ca, clients := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ca.issue(t, 10, cert, key)
	s, line := launch(t, func() server.Config {
		c := server.Default()
		c.Listen, c.DatabaseURL, c.ShutdownTimeout = "127.0.0.1:0", pgtest.New(t).ConnString(), 5*time.Second
		c.TLSCert, c.TLSKey, c.ClientCA = cert, key, clients.file
		return c
	}())
	ready, err := line()
	if err != nil {
		t.Fatalf("%v\n%s", err, s.log)
	}
	var address string
	if _, err := fmt.Sscanf(ready, "serving on %s", &address); err != nil {
		t.Fatal(err)
	}

	ownCert, ownKey := filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem")
	clients.issue(t, 20, ownCert, ownKey)
	own, err := tls.LoadX509KeyPair(ownCert, ownKey)
	if err != nil {
		t.Fatal(err)
	}
	ca.issue(t, 21, ownCert, ownKey)
	foreign, err := tls.LoadX509KeyPair(ownCert, ownKey)
	if err != nil {
		t.Fatal(err)
	}
	over := func(conf *tls.Config) grpc.DialOption { return grpc.WithTransportCredentials(credentials.NewTLS(conf)) }
	var serial int64
	good := &tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{own}, VerifyConnection: func(c tls.ConnectionState) error {
		serial = c.PeerCertificates[0].SerialNumber.Int64()
		return nil
	}}
	if err := health(within(t), dial(t, address, over(good)), "", serving); err != nil || serial != 10 {
		t.Errorf("with a certificate that the server wants: %v (server's serial %d)", err, serial)
	}
	for name, option := range map[string]grpc.DialOption{
		"without a certificate":    over(&tls.Config{RootCAs: ca.pool}),
		"with a foreign one":       over(&tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{foreign}}),
		"trusting somebody else":   over(&tls.Config{RootCAs: clients.pool, Certificates: []tls.Certificate{own}}),
		"with TLS that is too old": over(&tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{own}, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}),
	} {
		if err := health(within(t), dial(t, address, option), "", serving); err == nil {
			t.Errorf("%s: it was let in", name)
		}
	}
	if err := health(within(t), dial(t, address), "", serving); err == nil {
		t.Error("in plaintext: it was let in")
	}

	// A renewed certificate is taken up by the next connection; one that cannot be read changes nothing.
	ca.issue(t, 11, cert, key)
	if err := health(within(t), dial(t, address, over(good)), "", serving); err != nil || serial != 11 {
		t.Errorf("after the renewal: %v (server's serial %d)", err, serial)
	}
	if err := os.WriteFile(cert, []byte("oops"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := health(within(t), dial(t, address, over(good)), "", serving); err != nil || serial != 11 {
		t.Errorf("after a renewal that failed: %v (server's serial %d)", err, serial)
	}
}

func TestCertificatesThatCannotBeRead(t *testing.T) {
	db := pgtest.New(t)
	dir := t.TempDir()
	ca := newAuthority(t)
	cert, key, empty := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "empty.pem")
	ca.issue(t, 10, cert, key)
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][3]string{
		"no certificate": {filepath.Join(dir, "none"), key, ""},
		"no key":         {cert, empty, ""},
		"no client CA":   {cert, key, filepath.Join(dir, "none")},
		"an empty CA":    {cert, key, empty},
	} {
		conf := server.Default()
		conf.Listen, conf.DatabaseURL = "127.0.0.1:0", db.ConnString()
		conf.TLSCert, conf.TLSKey, conf.ClientCA = c[0], c[1], c[2]
		if err := server.Run(within(t), conf, io.Discard, quiet); err == nil {
			t.Errorf("%s: it serves", name)
		}
	}
}
