"""Who comes and goes: what is published on sessions, lives, disks and outages, and what the models assume beside it.

Each figure names its source; where we found none it says "assumed". Times are hours, rates are per year.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

HOURS_PER_YEAR = 8_766.0
NORMAL_95TH_PERCENTILE = 1.645
DISK_DEATHS_PER_YEAR = 0.0157
"""Backblaze Drive Stats, year 2024, all drives: 1.57 % (quoted again in their report for Q3 2025)."""
DISK_REPLACED_HOURS = 72.0
"""Until the owner has put in another disk and begun to refill it. Assumed."""
REGION_SHARES = (0.30, 0.20, 0.12, 0.10, 0.08, 0.08, 0.06, 0.06)
"""Of the nodes, by provider or region. Assumed, and worse than IPFS, whose two largest autonomous systems have over
30 % and whose five largest have over 50 % of all addresses (Trautwein et al., SIGCOMM 2022)."""
REGION_OUTAGES_PER_YEAR = 4.0
"""In which all nodes of one region are unreachable together. Assumed; a single home that is cut off is an absence."""
REGION_OUTAGE_MEDIAN_HOURS = 4.0
REGION_OUTAGE_SIGMA = 1.2
"""Log-normal, so one in twenty lasts longer than 29 hours. Assumed, after outages like that of Rogers in July 2022."""
DISASTERS_PER_YEAR = 0.2
DISASTER_SHARE = 0.10
"""Of all nodes that vanish for good at once: a bad release, a ban, a flood. Assumed. Large failures are what kills wide
codes (Nath et al., NSDI 2006), so how large a share a network survives has a table of its own."""
assert abs(sum(REGION_SHARES) - 1) < 1e-9


@dataclass(frozen=True, slots=True)
class Churn:
    """One kind of node. Sessions and absences are log-normal (median, sigma of the logarithm), lives exponential."""

    name: str
    session_median: float
    session_sigma: float
    absence_median: float
    absence_sigma: float
    life_hours: float
    announced: float
    """The share of departures that hand their shards over first (`p2pnode leave`). Assumed everywhere."""
    source: str
    disk_deaths_per_year: float = DISK_DEATHS_PER_YEAR

    @property
    def session_mean(self) -> float:
        return self.session_median * math.exp(self.session_sigma**2 / 2)

    @property
    def absence_mean(self) -> float:
        return self.absence_median * math.exp(self.absence_sigma**2 / 2)

    @property
    def availability(self) -> float:
        return self.session_mean / (self.session_mean + self.absence_mean)

    @property
    def departures_per_hour(self) -> float:
        """Return the rate of those that say nothing: what they hold is lost."""
        return (1 - self.announced) / self.life_hours

    @property
    def disk_deaths_per_hour(self) -> float:
        return self.disk_deaths_per_year / HOURS_PER_YEAR

    def absences_per_hour(self, longer_than: float) -> float:
        """Return the rate of absences that last so many hours at least."""
        late = 1 - NormalDist(math.log(self.absence_median), self.absence_sigma).cdf(math.log(longer_than))
        return late / (self.session_mean + self.absence_mean)


DEDICATED = Churn(
    name="dedicated",
    session_median=102.0,
    session_sigma=1.0,
    absence_median=2.0,
    absence_sigma=1.7,
    life_hours=365 * 24.0,
    announced=0.5,
    source="a small box that is always on, paid: 95% up, as the PCs of Bolosky et al. (SIGMETRICS 2000); a life of 12"
    " months, the longer of the two that the Storj white paper v3 (7.3) reckons with; sessions of a week assumed",
)
RESTLESS = Churn(
    name="restless",
    session_median=102.0,
    session_sigma=1.0,
    absence_median=2.0,
    absence_sigma=1.7,
    life_hours=90 * 24.0,
    announced=0.25,
    source="the same box whose owner loses interest after 3 months and seldom says so: assumed, a stress",
)
DESKTOP = Churn(
    name="desktop",
    session_median=15.0,
    session_sigma=0.4,
    absence_median=7.6,
    absence_sigma=0.3,
    life_hours=290 * 24.0,
    announced=0.25,
    source="a PC that sleeps 8 h a day (assumed, at independent hours): 2/3 up; a life of 290 days, the mean of"
    " Bolosky et al. (SIGMETRICS 2000)",
)
CASUAL = Churn(
    name="casual",
    session_median=1.65,
    session_sigma=1.365,
    absence_median=3.9,
    absence_sigma=1.365,
    life_hours=30 * 24.0,
    announced=0.0,
    source="IPFS peers, unpaid: log-normal through 87.6% of sessions under 8 h and 2.5% over 24 h (Trautwein et al.,"
    " SIGCOMM 2022); 30% up, as the median host of Bhagwan et al. (IPTPS 2003); a life of 30 days assumed",
)
PROFILES = (DEDICATED, RESTLESS, DESKTOP, CASUAL)


def assumptions() -> list[str]:
    """Return what all runs share, a line each."""
    long_outage = REGION_OUTAGE_MEDIAN_HOURS * math.exp(NORMAL_95TH_PERCENTILE * REGION_OUTAGE_SIGMA)
    return [
        *(f"churn {churn.name}: {churn.source}" for churn in PROFILES),
        f"disks: {DISK_DEATHS_PER_YEAR:.2%} die a year (Backblaze Drive Stats for 2024); replaced after"
        f" {DISK_REPLACED_HOURS:.0f} h on average (assumed)",
        f"regions hold {', '.join(f'{share:.0%}' for share in REGION_SHARES)} of the nodes;"
        f" {REGION_OUTAGES_PER_YEAR:.0f} times a year one is unreachable as a whole, for"
        f" {REGION_OUTAGE_MEDIAN_HOURS:.0f} h in the median and over"
        f" {long_outage:.0f} h in one of twenty (assumed)",
        f"disasters: every {1 / DISASTERS_PER_YEAR:.0f} years {DISASTER_SHARE:.0%} of all nodes vanish for good at once"
        " (assumed)",
    ]
